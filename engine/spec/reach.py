"""Which files of this machine a spec may read, and which it names.

A spec may come from anybody, so it reads what lies in its own folder, and in the working folder where that is around it; what
comes with caiflow, the store, and the hub's cache; what the user named by hand; and whatever else only where the user allows
it (`--allow-path`, or for good in `allow.yaml`). Links and `..` are followed before a path is judged. Reads no file's content,
but for what an adapter says it is laid over.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.errors import EngineError
from caiflow.engine.field_marks import Mark, marks
from caiflow.engine.machine import home, local_path
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.yaml.tree import Node, Path_

LONGEST_PATH, LONGEST_PART = 4096, 255
"""Bytes of a path with its end, and of a name in it, as file systems have them."""
_PACKAGE = Path(__file__).parents[2]
_SHIPPED = tuple(_PACKAGE / name for name in ("constitutions", "specs", "examples"))


class Reach:
    """The places that a spec in the folder `base_dir` may read; `allowed` are those that the user named for it."""

    def __init__(self, base_dir: Path, allowed: Collection[Path] = ()) -> None:
        self.base_dir = base_dir
        self._allowed = allowed

    def refused(self, path: Path, *, for_good: bool = True) -> Path | None:
        """Return where a path leads, links followed, if the spec may not read there; None where it may.

        Without `for_good`, what the user's own file allows doesn't count.
        """
        return None if self.why(path, for_good=for_good) else resolved(path)

    def why(self, path: Path, *, for_good: bool = True) -> str:
        """Return why the spec may read a path, in words of where it leads; empty where it may not."""
        target = resolved(path)
        for words, folder in self._folders.items():
            if target.is_relative_to(folder) and not _hidden(target, folder):
                return words
        found = next((words for words, places in self._given.items() if any(map(target.is_relative_to, places))), "")
        return found or ("allowed for good" if for_good and any(map(target.is_relative_to, self._for_good)) else "")

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """The spec's folder and the working folder around it, but never the home folder: all that a user has lies there."""
        mine, own, working = resolved(home()), resolved(self.base_dir), resolved(Path.cwd())
        folders = {"in the spec's folder": own}
        if own.is_relative_to(working):
            folders["in the working folder"] = working
        return {words: folder for words, folder in folders.items() if not mine.is_relative_to(folder)}

    @cached_property
    def _given(self) -> dict[str, list[Path]]:
        from caiflow.engine.llm.model_files import hub_cache
        from caiflow.engine.store.artifacts import default_home

        given = {"comes with caiflow": _SHIPPED, "in the store": [default_home()], "in the hub's cache": [hub_cache()]}
        return {words: [*map(resolved, places)] for words, places in {**given, "allowed now": self._allowed}.items()}

    @cached_property
    def _for_good(self) -> list[Path]:
        from caiflow.engine.spec.permissions import permissions

        return [resolved(place) for place in permissions().paths]


def resolved(path: Path) -> Path:
    """Return an absolute path without links and `..`; of one that leads nowhere, as far as it goes."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a null character: no file has such a name
        return Path(os.path.abspath(str(path).replace("\0", "\ufffd")))


def too_long(path: Path) -> bool:
    """Return whether a path is longer than any file's: looking for such a one is an error."""
    sizes = [len(text.encode(errors="surrogatepass")) for text in (str(path), *path.parts)]
    return sizes[0] >= LONGEST_PATH or max(sizes[1:], default=0) > LONGEST_PART


def _hidden(target: Path, folder: Path) -> bool:
    """Return whether a name below `folder` begins with a dot, as those of keys, settings and histories do."""
    return any(part.startswith(".") for part in target.relative_to(folder).parts)


def out_of_reach(value: str, target: Path) -> tuple[str, str]:
    """Return what to say of a value that leads to a file which the spec may not read, and what to do."""
    leads = "" if str(target) == value else f" leads to {target}, which"
    why = "is hidden" if target.name.startswith(".") else "is outside this spec's folder"
    return f"{value}{leads} {why}", f"say {flag_for(target)} if it may be read"


def flag_for(target: Path) -> str:
    """Return the option that allows a path: its folder, or it alone where all of a home folder would be allowed with it."""
    folder = target if target.is_dir() else target.parent
    wide = resolved(home()).is_relative_to(folder) or target.name.startswith(".")
    return f"--allow-path {shlex.quote(str(target if wide else folder))}"


class Named(NamedTuple):
    """A value that may name a file: where it stands, what is written there, and what the field takes."""

    place: Path_
    value: str
    takes: str
    """`file`, `file-or-hub`, `model`, `template` or `constitution`."""

    def leads_to(self, base_dir: Path) -> Iterator[Path]:
        """Yield each path that may be read for the value: the file, those of a pattern or a folder, an adapter's model."""
        written = base_dir / self.value
        if not self.value.startswith("~") or os.path.lexists(written):
            yield written
        if self.place[0] == "models" and os.path.exists(self.value):  # models and templates are looked for here too
            yield Path(self.value)
        if self.takes in ("constitution", "template"):
            return
        if self.value.startswith("~"):
            written = local_path(self.value, base_dir)
            yield written
        if any(sign in written.name for sign in "*?[") and not os.path.lexists(written):
            yield from matches(written)
        for folder in (written, Path(self.value)) if self.place[0] == "models" else ():
            if os.path.isdir(folder):
                yield from links_below(folder)
                yield from _laid_over(folder, base_dir)


def named(models: Mapping[str, ModelEntry], steps: Mapping[str, Iterable[Mark]], tree: Node) -> Iterator[Named]:
    """Yield what may name a file in a spec; `steps` has the marks (`x-path`) of each."""
    for name, entry in models.items():
        if entry.chat_template and "{" not in entry.chat_template:
            yield Named(("models", name, "chat_template"), entry.chat_template, "template")
        for mark in paths_of(entry):
            if not _by_name(mark.value):
                yield Named(("models", name, *mark.path), mark.value, mark.meaning)
    for name, found in steps.items():
        yield from (Named(("steps", name, *mark.path), mark.value, mark.meaning) for mark in found if not mark.key)
    for place in (("constitution",), *(("steps", name, "constitution") for name in steps)):
        yield from _in_constitution(tree.get(*place), place)


def paths_of(entry: ModelEntry) -> Iterator[Mark]:
    """Yield what may name a file in a model's entry; what a server calls its model is a name, whatever it looks like."""
    yield from (mark for mark in marks(entry, "x-path") if not (entry.served and mark.path == ("source",)))


def _by_name(value: str) -> bool:
    from caiflow.engine.llm.model_files import BUNDLED, PACKAGED

    return value in BUNDLED or value in PACKAGED


def _in_constitution(node: Node | None, place: Path_) -> Iterator[Named]:
    if node is None:
        return
    if isinstance(node.value, str):
        yield Named(place, node.value, "constitution")
    elif isinstance(node.value, tuple):
        for index, item in enumerate(node.value):
            yield from _in_constitution(item, (*place, index))
    else:
        yield from _in_constitution(node.child("source"), (*place, "source"))


def matches(pattern: Path) -> Iterator[Path]:
    """Yield what fits a path whose last name is a pattern; nothing where it is none (`**x`) or too long to be one."""
    with suppress(ValueError, OSError):
        yield from pattern.parent.glob(pattern.name)


def is_there(path: Path) -> bool:
    """Return whether a path is that of a file or folder, or a pattern that some fit."""
    return os.path.exists(path) or any(matches(path))


def links_below(folder: Path) -> Iterator[Path]:
    """Yield the links in a folder and in those below it."""
    for where, folders, files in os.walk(folder):
        yield from (Path(where, name) for name in (*folders, *files) if os.path.islink(os.path.join(where, name)))


def _laid_over(folder: Path, base_dir: Path) -> Iterator[Path]:
    from caiflow.engine.llm.files import adapter_base

    try:
        base = adapter_base(folder)
    except EngineError:
        return  # what is wrong with it is said where it is read
    if base and not _by_name(base[0]):
        yield base_dir / base[0]
