"""Where a spec's local paths stand, and the same spec with them moved. Never copies a file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.field_marks import marks

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import Spec

Place = tuple[str | int, ...]


def portable(spec: Spec) -> str:
    """Return the resolved spec as YAML that loads from any folder of this machine: its local paths are absolute."""
    return as_yaml(relocated(spec, lambda path: None if _bundled(path) else str(path.resolve())))


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
        from caiflow.engine.llm.model_files import BUNDLED, PACKAGED

        if value in BUNDLED or value in PACKAGED:
            return None
    path = spec.base_dir / Path(value).expanduser()
    return path if path.exists() else None


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


def as_yaml(raw: dict[str, Any]) -> str:
    """Return a spec's mapping as YAML, in its own order."""
    import yaml

    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=120)
