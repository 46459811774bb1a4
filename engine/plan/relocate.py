"""Where a spec's local paths stand, and the same spec with them moved. Never copies a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.machine import local_path
from caiflow.engine.spec.reach import Named, is_there, named

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import Spec


def portable(spec: Spec) -> str:
    """Return the resolved spec as YAML that loads from any folder of this machine: its local paths are absolute."""
    return as_yaml(relocated(spec, lambda path: None if _bundled(path) else str(path.resolve())))


def relocated(spec: Spec, move: Callable[[Path], str | None]) -> dict[str, Any]:
    """Return the resolved spec with each local file, folder or pattern of files replaced by `move(path)`; None leaves it."""
    raw = copy.deepcopy(dict(spec.raw))
    for found in named(spec.models, {name: step.marks("x-path") for name, step in spec.steps.items()}, spec.source):
        path = _local(spec, found)
        moved = move(path) if path is not None else None
        if moved is not None:
            holder: Any = raw
            for part in found.place[:-1]:
                holder = holder[part]
            holder[found.place[-1]] = moved
    return raw


def _local(spec: Spec, found: Named) -> Path | None:
    """Return the file, folder or pattern of files on this machine that a value names, if any."""
    if found.takes == "constitution":
        from caiflow.engine.constitution.load import source_path

        return source_path(found.value, spec.base_dir)
    path = local_path(found.value, spec.base_dir)
    return path if is_there(path) else None


def _bundled(path: Path) -> bool:
    import caiflow.constitutions

    return any(path.is_relative_to(folder) for folder in map(Path, caiflow.constitutions.__path__))


def as_yaml(raw: dict[str, Any]) -> str:
    """Return a spec's mapping as YAML, in its own order."""
    import yaml

    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=120)
