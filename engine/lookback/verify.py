"""Hashing again what runs have made, to find files that changed behind the store's back.

Changes nothing but the time of a file that isn't what was sealed, so that no run takes it for unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from caiflow.engine.errors import CaiflowError, StoreError
from caiflow.engine.lookback.history import output_dir
from caiflow.engine.plan.lock import LOCK, read_lock
from caiflow.engine.store.artifacts import Artifact, content_manifest, distrust, read_artifact
from caiflow.engine.store.journal import MADE


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one step's artifact; `problems` is empty where every file is as it was sealed."""

    step: str
    path: Path
    files: int
    problems: tuple[str, ...]


def verify(run_dir: Path) -> Iterator[Verdict]:
    """Yield a verdict for each step of a run that has an output, hashing every file; what has changed no run will use.

    Raises:
        CaiflowError: the folder holds no run.
    """
    try:
        steps = json.loads((run_dir / "run.json").read_bytes())["steps"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaiflowError(f"{run_dir}: no run is recorded here, got {error}", "name a run's folder") from error
    locked = read_lock(run_dir / LOCK)["steps"] if (run_dir / LOCK).exists() else {}
    for name, step in steps.items():
        if step["status"] in MADE:
            path = output_dir(run_dir, name, step)
            yield _verdict(name, path, step.get("digest"), locked.get(name, {}).get("content"))


def _verdict(step: str, path: Path, digest: str | None, content: str | None) -> Verdict:
    path = path.resolve()
    try:
        artifact = read_artifact(path)
    except StoreError as error:
        return Verdict(step, path, 0, (str(error),))
    problems = list(_changed(artifact))
    if digest is not None and artifact.digest != digest:
        problems.append(f"the folder is another artifact's, {artifact.digest[:12]} and not {digest[:12]}")
    if content is not None and artifact.content != content:
        problems.append(f"its content {artifact.content[:12]} isn't the lock's, {content[:12]}")
    return Verdict(step, path, len(artifact.files), tuple(problems))


def _changed(artifact: Artifact) -> Iterator[str]:
    found = content_manifest(artifact.path)
    for name in sorted({*artifact.files, *found["files"]}):
        sealed, now = artifact.files.get(name), found["files"].get(name)
        if sealed != now:
            distrust(artifact.path / name)
            yield f"{name} is {'missing' if now is None else 'new' if sealed is None else 'changed'}"
    if found["content"] != artifact.content and found["files"] == artifact.files:
        yield "the recorded content doesn't belong to the recorded files"
