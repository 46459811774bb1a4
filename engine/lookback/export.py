"""A run as a folder that another person can run: spec, lock, constitution, and the local files that are small enough.

Owns where a spec's local paths stand and how they move. Copies; never changes the run, and never takes hub files along.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import CaiflowError
from caiflow.engine.field_marks import marks
from caiflow.engine.plan.lock import LOCK, Drift, compare_locks, make_lock, read_lock
from caiflow.engine.store.file_digests import file_digest, folder_files

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import Spec
    from caiflow.engine.store.artifacts import Store

LIMIT_BYTES = 200_000_000
"""A larger file or folder isn't taken along."""
Place = tuple[str | int, ...]

_README = """\
# {name}

A caiflow run to repeat. `spec.yaml` says what it does, `caiflow.lock` what it used and made.

    pip install caiflow=={version}
    caiflow run spec.yaml            # says at the end how far it is the same
    caiflow run spec.yaml --locked   # stops where anything differs from the lock
"""


@dataclass(frozen=True, slots=True)
class Export:
    """What was written. `left_out` are local paths that were too large; `drift` is what has changed since the run."""

    path: Path
    files: tuple[str, ...]
    left_out: tuple[Path, ...]
    drift: tuple[Drift, ...]


def export(run_dir: Path, target: Path, store: Store, *, limit_bytes: int = LIMIT_BYTES) -> Export:
    """Write a folder from which the run can be repeated elsewhere.

    Raises:
        CaiflowError: the target isn't empty, or the run has no lock.
        SpecError: a file that the spec names is gone.
    """
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.spec.load import load_spec

    if target.exists() and any(target.iterdir()):
        raise CaiflowError(f"{target}: not empty; name a new folder")
    locked = read_lock(run_dir / LOCK)
    spec = load_spec(run_dir / "spec.yaml")
    target.mkdir(parents=True, exist_ok=True)
    copier = _Copier(target, limit_bytes)
    (target / "spec.yaml").write_text(_yaml(relocated(spec, copier.take)), encoding="utf-8")
    shutil.copyfile(run_dir / LOCK, target / LOCK)
    words = _README.format(name=spec.name, version=locked["packages"].get("caiflow", ""))
    (target / "README.md").write_text(words + copier.words(), encoding="utf-8")
    drift = compare_locks(locked, make_lock(Resolver(spec, store)))
    return Export(target, tuple(folder_files(target)), tuple(copier.left_out), tuple(d for d in drift if d.refused))


def portable(spec: Spec) -> str:
    """Return the resolved spec as YAML that loads from any folder of this machine: its local paths are absolute."""
    return _yaml(relocated(spec, lambda path: None if _bundled(path) else str(path.resolve())))


def relocated(spec: Spec, move: Callable[[Path], str | None]) -> dict[str, Any]:
    """Return the resolved spec with each local file or folder it names replaced by `move(path)`; None leaves it."""
    raw = copy.deepcopy(dict(spec.raw))
    for place in _places(spec, raw):
        path = _local(spec, place, _get(raw, place))
        moved = move(path) if path is not None else None
        if moved is not None:
            _get(raw, place[:-1])[place[-1]] = moved
    return raw


def _places(spec: Spec, raw: dict[str, Any]) -> Iterator[Place]:
    """Yield where a path may stand: parameters marked so, chat templates, and constitutions."""
    for name, entry in spec.models.items():
        yield from (("models", name, *mark.path) for mark in marks(entry, "x-path") if not mark.key)
        yield ("models", name, "chat_template")
    for name, step in spec.steps.items():
        yield from (("steps", name, *mark.path) for mark in step.marks("x-path") if not mark.key)
        yield from _in_constitution(_get(raw, ("steps", name, "constitution")), ("steps", name, "constitution"))
    yield from _in_constitution(raw.get("constitution"), ("constitution",))


def _in_constitution(value: Any, place: Place) -> Iterator[Place]:
    if isinstance(value, str):
        yield place
    elif isinstance(value, dict) and "source" in value:
        yield (*place, "source")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _in_constitution(item, (*place, index))


def _local(spec: Spec, place: Place, value: Any) -> Path | None:
    """Return the file or folder on this machine that a value names, if it does."""
    if not isinstance(value, str) or not value or "\n" in value or len(value) > 4096:
        return None
    if "constitution" in place:
        from caiflow.engine.constitution.load import source_path

        return source_path(value, spec.base_dir)
    if place[0] == "models":
        from caiflow.engine.plan.model_identity import BUNDLED

        if value in BUNDLED:
            return None
    path = spec.base_dir / Path(value).expanduser()
    return path if path.exists() else None


class _Copier:
    """Copies files and folders into `target`, each once; a file keeps its name, which is part of its rows' identity."""

    def __init__(self, target: Path, limit_bytes: int) -> None:
        self.left_out: list[Path] = []
        self._target = target
        self._limit = limit_bytes
        self._taken: dict[Path, str] = {}

    def take(self, path: Path) -> str | None:
        """Copy unless it is too large, and return the new relative path."""
        path = path.resolve()
        if path in self.left_out:
            return None
        if path not in self._taken:
            names = folder_files(path) if path.is_dir() else None
            if (
                sum(file.stat().st_size for file in ([path] if names is None else [path / name for name in names]))
                > self._limit
            ):
                self.left_out.append(path)
                return str(path)
            self._taken[path] = self._copy(path, names)
        return self._taken[path]

    def words(self) -> str:
        """Return what the reader must know of the files left out."""
        listed = "".join(f"- `{path}`\n" for path in self.left_out)
        return f"\nToo large to come along; put them somewhere and change `spec.yaml`:\n\n{listed}" if listed else ""

    def _copy(self, path: Path, names: Sequence[str] | None) -> str:
        place = self._free(Path("data") / path.name)
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


def _bundled(path: Path) -> bool:
    import caiflow.constitutions

    return any(path.is_relative_to(folder) for folder in map(Path, caiflow.constitutions.__path__))


def _get(value: Any, place: Place) -> Any:
    for name in place:
        try:
            value = value[name]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _yaml(raw: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=120)
