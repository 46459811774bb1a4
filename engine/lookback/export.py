"""A run as a folder that another person can run: spec, lock, constitution, local files that are small enough, and cards.

Copies; never changes the run, and never takes hub files along.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.errors import CaiflowError
from caiflow.engine.lookback.cards import card
from caiflow.engine.lookback.opened import Run
from caiflow.engine.plan.components import COMPONENTS, TEXTS
from caiflow.engine.plan.lock import LOCK, Drift, compare_locks, make_lock, read_lock
from caiflow.engine.plan.relocate import as_yaml, relocated
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.spec.reach import Reach, links_below, matches
from caiflow.engine.store.file_digests import file_digest, folder_files

if TYPE_CHECKING:
    from caiflow.engine.store.artifacts import Store

LIMIT_BYTES = 200_000_000
"""A larger file or folder isn't taken along."""

TOOLS = {
    "inspect": "an `evaluate` step with `inputs` does",
    "verifiers": "an `evaluate` step with `inputs` does",
    "reward": "a `reward` or a `grade` step does",
}
"""Tools that an export can be written for too, and what a run needs for that."""

_README = """\
# {name}

A caiflow run to repeat. `spec.yaml` says what it does, `caiflow.lock` what it used and made, `steps/*.md` what each step made.

    caiflow inspect spec.yaml        # what it may do
    caiflow run spec.yaml            # says at the end how far it is the same
    caiflow run spec.yaml --locked   # stops where anything differs from the lock

It was made with {packages}.
"""
_OF_A_RUN = ("run.json", "events.jsonl", COMPONENTS, TEXTS)
"""What of a run's folder `show`, `diff` and `report` read beside the artifacts."""


@dataclass(frozen=True, slots=True)
class Export:
    """What was written. `drift` is what has changed since the run.

    `left_out` are local paths that were too large; `unasked` those outside the working folder that nobody asked to hand on.
    """

    path: Path
    files: tuple[str, ...]
    left_out: tuple[Path, ...]
    unasked: tuple[Path, ...]
    drift: tuple[Drift, ...]


def export(
    run_dir: Path, target: Path, store: Store, *, limit_bytes: int = LIMIT_BYTES, allowed: Permissions = Permissions()
) -> Export:
    """Write a folder from which the run can be repeated elsewhere.

    Files beyond the reach of the run's spec (see `spec.reach`) come along only from the `allowed` paths.

    Raises:
        CaiflowError: the target isn't empty, or the run has no lock.
        SpecError: a file that the spec names is gone.
    """
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.spec.load import load_spec

    if target.exists() and any(target.iterdir()):
        raise CaiflowError(f"{target}: not empty", "name a new folder")
    locked = read_lock(run_dir / LOCK)
    spec = load_spec(run_dir / "spec.yaml", allowed=allowed.paths)
    target.mkdir(parents=True, exist_ok=True)
    copier = Copier(target, limit_bytes, Reach(run_dir, allowed.paths))
    (target / "spec.yaml").write_text(as_yaml(relocated(spec, copier.take)), encoding="utf-8")
    shutil.copyfile(run_dir / LOCK, target / LOCK)
    needed = {**locked["packages"], **dict(package.split("==", 1) for package in locked["plugins"].values())}
    words = _README.format(name=spec.name, packages=", ".join(f"{name} {version}" for name, version in needed.items()))
    (target / "README.md").write_text(words + copier.words(), encoding="utf-8")
    drift = tuple(found for found in compare_locks(locked, make_lock(Resolver(spec, store, allowed=allowed))) if found.refused)
    return Export(target, tuple(folder_files(target)), tuple(copier.left_out), tuple(copier.unasked), drift)


def write_results(run_dir: Path, target: Path, *, whole: bool) -> tuple[str, ...]:
    """Write a card of each step's rows or model into an export; `whole` also copies what the steps made, links resolved.

    The folder is then a run's own, which `show`, `diff`, `report` and `verify` take on any machine. Returns the new files.
    """
    run, before = Run(run_dir), set(folder_files(target))
    (target / "steps").mkdir(exist_ok=True)
    for name, step in run.items():
        if not step.is_made:
            continue
        if step.kind != "metrics":
            (target / "steps" / f"{name}.md").write_text(card(run, name), encoding="utf-8")
        if whole:
            shutil.copytree(step.path, target / "steps" / name)
    for name in _OF_A_RUN if whole else ():
        if (run_dir / name).exists():
            shutil.copyfile(run_dir / name, target / name)
    return tuple(name for name in folder_files(target) if name not in before)


def write_for(tool: str, run_dir: Path, target: Path) -> tuple[str, ...]:
    """Write what another tool takes of a run's steps into the folder of its name in an export; return the new files.

    Raises:
        CaiflowError: no step of the run made anything for it.
    """
    from caiflow.engine.spec.load import load_spec

    operators, folder = load_spec(run_dir / "spec.yaml").operators, target / tool
    for name, step in Run(run_dir).items():
        for file, content in operators[name].handed_on(tool, name, step.path) if step.is_made else ():
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copytree(content, folder / file)
            else:
                (folder / file).write_text(content, encoding="utf-8")
    if not folder.is_dir():
        raise CaiflowError(f"{run_dir}: no step made anything for {tool}", TOOLS[tool])
    return tuple(f"{tool}/{name}" for name in folder_files(folder))


class Copier:
    """Copies files and folders into `target`, each once; a file keeps its name, which is part of its rows' identity."""

    def __init__(self, target: Path, limit_bytes: int, reach: Reach) -> None:
        self.left_out: list[Path] = []
        self.unasked: list[Path] = []
        self._reach = reach
        self._target = target
        self._limit = limit_bytes
        self._taken: dict[Path, str] = {}

    def take(self, path: Path) -> str | None:
        """Copy unless it is too large or may not be handed on, and return the new path: relative, or of what stays absolute.

        A pattern stays one, of its files in a folder of their own.
        """
        path = path.resolve()
        if path in self.left_out or path in self.unasked:
            return str(path)
        several = not path.exists()
        files = sorted(filter(Path.is_file, matches(path))) if several else [path]
        if any(self._reach.refused(place, for_good=False) for file in files for place in (file, *links_below(file))):
            self.unasked.append(path)
            return str(path)
        if path not in self._taken:
            if sum(_size(file) for file in files) > self._limit:
                self.left_out.append(path)
                return str(path)
            self._taken[path] = self._copy_all(path, files) if several else self._copy(path, Path("data"))
        return self._taken[path]

    def words(self) -> str:
        """Return what the reader must know of the files left out."""
        listed = "".join(f"- `{path}`\n" for path in (*self.left_out, *self.unasked))
        return f"\nWhat didn't come along; put it somewhere and change `spec.yaml`:\n\n{listed}" if listed else ""

    def _copy_all(self, pattern: Path, files: Sequence[Path]) -> str:
        folder = self._free(Path("patterns") / (pattern.parent.name or "root"))
        for file in files:
            self._copy(file, folder)
        return (folder / pattern.name).as_posix()

    def _copy(self, path: Path, folder: Path) -> str:
        place = self._free(folder / path.name)
        names = folder_files(path) if path.is_dir() else None
        for source, to in [(path, place)] if names is None else [(path / name, place / name) for name in names]:
            (self._target / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self._target / to)
            assert file_digest(source) == file_digest(self._target / to), source
        return place.as_posix()

    def _free(self, place: Path) -> Path:
        number, found = 2, place
        while (self._target / found).exists():
            found, number = place.parent / str(number) / place.name, number + 1
        return found


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum((path / name).stat().st_size for name in folder_files(path)) if path.is_dir() else path.stat().st_size
