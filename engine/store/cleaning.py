"""Cleaning the store: what no kept run reaches, how large it is, and removing it.

A run is kept while its folder exists. Never touches a run's folder, nor what a living process is working on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from caiflow.engine.store.artifacts import Store, short
from caiflow.engine.store.disk import storing

Kind = Literal["artifact", "aside", "ledger", "work", "staging", "run"]
GRACE_S = 3600.0
"""What changed more recently than this is left alone: a run may just have made it and not yet said so."""
ELSEWHERE_S = 7 * 86400.0
"""Unfinished work of another machine, whose processes can't be seen, is left alone for this long."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing that can go; `size_bytes` counts its files."""

    kind: Kind
    path: Path
    size_bytes: int


def find_garbage(store: Store, *, grace_s: float = GRACE_S) -> list[Garbage]:
    """Return what no kept run reaches: artifacts, ledgers, unfinished work, records of runs gone, and results set aside."""
    runs = store.runs()
    artifacts = {digest for run in runs for digest in run.artifacts}
    ledgers = {name for run in runs for name in run.ledgers}
    unfinished = {short(digest) for digest in artifacts}
    found = [
        *(("artifact", path) for path in store.artifacts_dir.glob("??/*") if path.name not in artifacts),
        *(("aside", path) for path in _inside(store.aside_dir)),
        *(("ledger", path) for path in _inside(store.ledger_dir) if path.name not in ledgers),
        *(("work", path) for path in _inside(store.work) if path.suffix != ".claim" and path.name not in unfinished),
        *(("staging", path) for path in _inside(store.staging_dir) if _abandoned(path)),
        *(("run", path) for path in store.forgotten_runs()),
    ]
    before = time.time() - grace_s
    return [Garbage(kind, path, _size(path)) for kind, path in found if _newest(path) <= before]  # type: ignore[arg-type]


def collect(store: Store, garbage: list[Garbage]) -> list[Garbage]:
    """Remove garbage and return what was removed; what a process holds, or a run has come to reach, is passed over.

    Raises:
        StoreError: no permission.
    """
    removed = []
    for item in garbage:
        with storing(item.path), _free(store, item) as free:
            if free and _remove(store, item):
                removed.append(item)
    return removed


def _reached(store: Store, item: Garbage) -> bool:
    runs = store.runs()
    names = {"artifact": (run.artifacts for run in runs), "ledger": (run.ledgers for run in runs)}
    return any(item.path.name in reached for reached in names.get(item.kind, ()))


@contextmanager
def _free(store: Store, item: Garbage) -> Iterator[bool]:
    """Yield whether no process appends to a ledger or works in a folder, and keep it so meanwhile."""
    if item.kind == "work":
        with store.claim(item.path.name) as claimed:
            yield claimed
        return
    open_files = [os.open(path, os.O_RDONLY) for path in item.path.glob("*.seg")] if item.kind == "ledger" else []
    try:
        yield sum(map(_lock, open_files)) == len(open_files)
    finally:
        for descriptor in open_files:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(store: Store, item: Garbage) -> bool:
    """Remove a file or folder, unless a run has come to reach it; a kill in between leaves nothing that looks whole."""
    if not item.path.is_dir():
        item.path.unlink(missing_ok=True)
        return True
    doomed = item.path.with_name(f".doomed-{item.path.name.removeprefix('.doomed-')}")
    os.replace(item.path, doomed)
    if _reached(store, item):
        os.replace(doomed, item.path)
        return False
    shutil.rmtree(doomed)
    return True


def _abandoned(staged: Path) -> bool:
    """Return whether the process that staged a folder is gone: it is dead here, or was elsewhere and left it for a week."""
    _, host, pid, _ = staged.name.removeprefix(".doomed-").split("~")
    if host != socket.gethostname():
        return _newest(staged) < time.time() - ELSEWHERE_S
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _files(path: Path) -> Iterator[os.stat_result]:
    yield path.lstat()
    for parent, _, names in os.walk(path):
        for name in names:
            yield os.lstat(Path(parent) / name)


def _size(path: Path) -> int:
    return sum(stat.st_size for stat in _files(path))


def _newest(path: Path) -> float:
    return max(stat.st_mtime for stat in _files(path))
