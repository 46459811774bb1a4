"""Where a source is: a local file, a file of the bundled example, or (`hub`) a data set on the hub; and what pins its content.

Never parses records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from caiflow.engine.errors import Finding, suggest
from caiflow.engine.machine import local_path
from caiflow.operators.formats import SUITE
from caiflow.operators.formats.files import has_data_suffix, read_lines
from caiflow.operators.formats.opening import Line, inner_name
from caiflow.operators.formats.tables import Csv

if TYPE_CHECKING:
    from caiflow.operators.formats.hub.data_sets import HubSource
    from caiflow.operators.formats.hub.suites import SuiteSource

BUNDLED = ("tiny:", "plain:")
"""The examples whose data files come with the package."""
_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"


class FileSource(NamedTuple):
    """One local file."""

    path: Path
    csv: Csv = Csv()

    @property
    def is_text(self) -> bool:
        """Whether its records have lines, by its name."""
        return ".parquet" not in self.path.name.lower()

    @property
    def is_empty(self) -> bool:
        """Whether it is there and has no record."""
        try:
            return self.path.is_file() and next(self.lines(), None) is None
        except (ValueError, OSError):
            return False

    def amiss(self, given: str) -> Iterator[Finding]:
        """Yield why what a step names `given` is no file that can be read."""
        if self.path.is_dir():
            yield Finding(("source",), f"{given} is a folder", f"name its files: `{given.rstrip('/')}/*.jsonl`")
        if given.startswith(BUNDLED) and not self.path.is_file():
            known = sorted(path.name for path in self.path.parent.glob("*.*"))
            yield Finding(("source",), f"no bundled file `{self.path.name}`", suggest(self.path.name, known, "bundled files"))
        if "://" in given and not self.path.exists():
            hub = re.match(r"(?:hf:/|https://huggingface\.co)/datasets/([^/@]+/[^/@]+)", given)
            hint = f"name the data set: `source: {hub[1]}`" if hub else "bring the file here, and name its path"
            yield Finding(("source",), f"{given} is an address, not a file here", hint)

    def content(self) -> str:
        """Return the sha256 of the file's bytes, hashed once for as long as the file stays as it is, and how they are read."""
        from caiflow.engine.store.artifacts import Store
        from caiflow.engine.store.file_digests import file_digest

        return f"{file_digest(self.path, Store().files)}{Path(inner_name(self.path)).suffix}"

    def lines(self) -> Iterator[Line]:
        """Yield the records in order."""
        return read_lines(self.path, self.csv)

    def place(self, line: Line) -> str:
        """Return `file:line` of a record."""
        return f"{self.path}:{line.place}" if self.is_text else f"{self.path}: row {line.place}"


Source = Union[FileSource, "HubSource", "SuiteSource"]


def bundled_file(name: str) -> Path:
    """Return the path of a data file of a bundled example, by `EXAMPLE:NAME`; a name leads to no other folder."""
    example, _, file = name.partition(":")
    return Path(__file__).parents[2] / "examples" / example / "data" / Path(file).name


def resolve(source: str, base_dir: Path, hub: Mapping[str, Any], csv: Csv = Csv()) -> list[Source]:
    """Return what `source` names: `EXAMPLE:NAME`, `suite:NAME`, files in `base_dir`, or a hub id (`hub` has its other fields).

    A pattern such as `shards/*.jsonl` names its files in order of their names, unless a file has that very name. A text that
    could be a file or a hub id is a hub id only where no such file exists.
    """
    if source.startswith(BUNDLED):
        return [FileSource(bundled_file(source))]
    if source.startswith(SUITE):
        from caiflow.operators.formats.hub.suites import suite_sources

        return [*suite_sources(source, hub.get("revision"))]
    path = local_path(source, base_dir)
    if any(sign in path.name for sign in "*?[") and not path.is_file():
        return [FileSource(found, csv) for found in sorted(path.parent.glob(path.name)) if found.is_file()]
    if path.exists() or has_data_suffix(source) or not re.fullmatch(_HUB_ID, source):
        return [FileSource(path, csv)]
    from caiflow.operators.formats.hub.data_sets import HubSource

    return [HubSource(source, **{name: value for name, value in hub.items() if value is not None})]
