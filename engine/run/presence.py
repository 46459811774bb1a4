"""Whether what a model is loaded from is on a machine, and is the same as on another: told in few bytes, for whoever compares.

Owns which files count: weights, settings, tokenizer and template. Loads nothing, downloads nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.errors import UnreachableError, WrongValue
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import adapter_base
from caiflow.engine.llm.hub import ask_hub
from caiflow.engine.llm.model_files import hub_snapshot

_SAMPLE_BYTES = 4096
_COUNTS = re.compile(
    r"(?!consolidated).*\.(safetensors|gguf)|(adapter|pytorch)_model.*\.bin|(adapter_)?config\.json"
    r"|.*\.index\.json|tokenizer.*|vocab\..*|merges\.txt|chat_template\..*"
)
"""The files without which a model can't be loaded, or is another; what else a repository has need not be everywhere."""
Told = Mapping[str, str]
"""What is told of files, by their names: their sizes, with a digest of some of their bytes."""


class Place(NamedTuple):
    """What a model is loaded from: a folder or a file of a machine, or a repository of the hub."""

    path: str
    revision: str | None = None

    @property
    def local(self) -> bool:
        """Whether it is a machine's own."""
        return Path(self.path).is_absolute()


def places(source: ModelSource, home: Path) -> list[Place]:
    """Return what a model is loaded from, but for what is in the store at `home`."""
    return [place for place in _named(source) if not Path(place.path).is_relative_to(home)]


def told_here(place: Place) -> Told:
    """Return what this machine has of it; of a repository nothing but, under no name, why it can't be had.

    So it is for files that can't be read.
    """
    try:
        why = None if place.local else _not_to_be_had(place)
        return _files_of(Path(place.path)) if place.local else {"": why} if why else {}
    except OSError as error:
        return {"": error.strerror or str(error)}


def _files_of(path: Path) -> Told:
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    counting = {file.name: file for file in files if _COUNTS.fullmatch(file.name) and file.is_file()}
    if any(name.endswith(".safetensors") for name in counting):
        counting = {name: file for name, file in counting.items() if ".bin" not in name}  # the same weights again
    return {name: _sampled(file) for name, file in counting.items()}


def lacking(place: Place, there: Told, here: Told) -> str:
    """Return what is wrong with what another machine has, in words that follow its name; nothing where it has what is here."""
    if "" in there:
        return f"can't {'read' if place.local else 'have'} {place.path}: {there['']}"
    if here and not there:
        return f"lacks {place.path}"
    if missing := sorted(here.keys() - there.keys()):
        return f"lacks {_listed(missing)} in {place.path}"
    others = sorted(name for name, told in here.items() if there[name] != told)
    return f"has another {_listed(others)} in {place.path}" if others else ""


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more files" if len(names) > 1 else names[0]


def _named(source: ModelSource) -> Iterator[Place]:
    if source.gguf is not None:
        if not Path(source.path).exists():  # once it is unpacked, nobody reads the file
            yield Place(source.gguf)
    elif not source.served:
        yield Place(source.path, source.revision)
        base = adapter_base(Path(source.path))
        if base and (Path(base[0]).is_absolute() or not Path(base[0]).exists()):
            yield Place(*base)
    yield from (Place(path) for path in (source.adapter, source.tokenizer) if path)


def _not_to_be_had(place: Place) -> str | None:
    """Return why a repository can be had neither from this machine's cache of the hub nor from the hub."""
    if hub_snapshot(place.path, place.revision) is not None:
        return None
    try:
        ask_hub(place.path, place.revision, "model")
    except (UnreachableError, WrongValue) as error:
        return f"its cache of the hub has no copy, and {error}"
    return None


def _sampled(file: Path) -> str:
    """Return a file's size with a digest of its beginning, its middle and its end: weights of one shape differ there."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for start in (0, size // 2, size - _SAMPLE_BYTES):
            opened.seek(max(0, start))
            digest.update(opened.read(_SAMPLE_BYTES))
    return f"{size}-{digest.hexdigest()[:16]}"
