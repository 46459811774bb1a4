"""Cleaning the store: what no kept run reaches, how large it is, and removing it.

A run is kept while its folder exists, and one of another machine, which alone may see its folder, for a week after its last
step. Never touches a run's folder, nor what a living process is working on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from caiflow.engine.errors import StoreError
from caiflow.engine.store.artifacts import RunRecord, Store, short
from caiflow.engine.store.disk import storing
from caiflow.engine.store.ledger_segment import ELSEWHERE_S
from caiflow.engine.store.share import MARK

Kind = Literal["artifact", "aside", "ledger", "work", "staging", "run"]
GRACE_S = 3600.0
"""What changed more recently than this is left alone: a run may just have made it and not yet said so."""
_AT_ONCE = 8
"""Folders removed at once: a disk that takes a millisecond for each takes many at a time."""
_CLOCK_TICK_NS = 2_000_000_000  # the coarsest that file systems in use have


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing that can go; `size_bytes` counts its files."""

    kind: Kind
    path: Path
    size_bytes: int


def find_garbage(store: Store, *, grace_s: float = GRACE_S, paid: bool = False) -> list[Garbage]:
    """Return what no kept run reaches: artifacts, unfinished work, records of runs gone, and results set aside.

    Ledgers hold what was paid for, and a run's folder that is gone may just have been moved: they only go where `paid`.

    Raises:
        StoreError: a run's record can't be read.
    """
    reached = _names(_runs(store, kept=True).values())
    unfinished = {short(digest) for digest in reached["artifact"]}
    found = [
        *(("artifact", path) for path in store.artifacts_dir.glob("??/*") if path.name not in reached["artifact"]),
        *(("aside", path) for path in _inside(store.aside_dir)),
        *(("ledger", path) for path in _inside(store.ledger_dir) if _removable(path, reached["ledger"], paid)),
        *(("work", path) for path in _inside(store.work) if path.suffix != ".claim" and path.name not in unfinished),
        *(("staging", path) for path in _inside(store.staging_dir) if _abandoned(path)),
        *(("staging", path) for begun in (MARK, f".doomed-{MARK}") for path in store.home.glob(f"{begun}*")),
        *(("run", path) for path in _runs(store, kept=False)),
    ]
    before = time.time() - grace_s
    sized = ((kind, path, *_size_and_time(path)) for kind, path in found)
    return [Garbage(kind, path, size) for kind, path, size, newest in sized if newest <= before]  # type: ignore[arg-type]


def _runs(store: Store, *, kept: bool) -> dict[Path, RunRecord]:
    """Return the records of the runs that are kept, or of all others, by where they are.

    Raises:
        StoreError: one can't be read, so that what its run reaches isn't known.
    """
    found = {path: record for path, record in store.run_records() if record is not None or path.exists()}
    for path in (path for path, record in found.items() if record is None):
        raise StoreError(f"{path}: what this run reaches can't be read", "remove the file if nothing of that run is needed")
    return {path: record for path, record in found.items() if record and _kept(path, record) is kept}


def _kept(path: Path, record: RunRecord) -> bool:
    """Return whether a run's folder exists, or may exist where only its own machine sees it."""
    if record.run_dir.is_dir():
        return True
    return record.host not in ("", socket.gethostname()) and _size_and_time(path)[1] > time.time() - ELSEWHERE_S


def _names(runs: Collection[RunRecord]) -> dict[str, set[str]]:
    """Return the names of what runs reach, by kind."""
    return {
        "artifact": {digest for run in runs for digest in run.artifacts},
        "ledger": {name for run in runs for name in run.ledgers},
    }


def _removable(ledger: Path, reached: Collection[str], paid: bool) -> bool:
    return ledger.name.startswith(".doomed-") or (paid and ledger.name not in reached)


def collect(store: Store, garbage: list[Garbage]) -> list[Garbage]:
    """Remove garbage and return what was removed; what a process holds, or a run has come to reach, is passed over.

    Raises:
        StoreError: no permission, or a run's record can't be read.
    """
    removed = []
    reached = _Reached(store)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        going = []
        for item in garbage:
            with storing(item.path), _free(store, item) as free:
                doomed = _out_of_reach(reached, item) if free else None
            if doomed is not None:  # its files are closed by now: NFS keeps open ones in their folder under another name
                going.append(pool.submit(_remove, doomed))
                removed.append(item)
        for one in going:
            one.result()
    return removed


class _Reached:
    """What runs reach, read again whenever a run was recorded meanwhile: each record is a new file in their folder."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read_at = -1
        self._names: Mapping[str, Collection[str]] = {}

    def __contains__(self, item: Garbage) -> bool:
        changed = self._changed_at()
        if self._read_at != changed:
            self._names = _names(_runs(self._store, kept=True).values())
            settled = time.time_ns() - changed > _CLOCK_TICK_NS  # else the next change may bear the same time
            self._read_at = changed if settled else -1
        return item.path.name in self._names.get(item.kind, ())

    def _changed_at(self) -> int:
        try:
            return self._store.runs_dir.stat().st_mtime_ns
        except FileNotFoundError:
            return 0


@contextmanager
def _free(store: Store, item: Garbage) -> Iterator[bool]:
    """Yield whether no process appends to a ledger or works in a folder, and keep it so meanwhile."""
    if item.kind == "work":
        with store.claim(item.path.name) as claimed:
            yield claimed
        return
    # NFS gives the lock of one writer only where writing is possible
    open_files = [os.open(path, os.O_RDWR) for path in item.path.glob("*.seg")] if item.kind == "ledger" else []
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


def _out_of_reach(reached: _Reached, item: Garbage) -> Path | None:
    """Give a folder a name that nobody looks for, so that a kill leaves nothing that looks whole; return where it is now.

    None where a run has come to reach it, or another process was first.
    """
    if not item.path.is_dir():
        return item.path
    doomed = item.path.with_name(f".doomed-{item.path.name.removeprefix('.doomed-')}")
    try:
        doomed = _renamed(item.path, doomed)
    except FileNotFoundError:
        return None
    gone = False
    try:
        gone = item not in reached
    finally:  # what runs reach may just not be known
        if not gone:
            os.replace(doomed, item.path)
    return doomed if gone else None


def _renamed(folder: Path, doomed: Path) -> Path:
    """Rename a folder, and return what it is called now: a kill may have left the name to one made anew and dropped since."""
    try:
        os.replace(folder, doomed)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        doomed = doomed.with_name(f"{doomed.name}.{uuid.uuid4().hex[:8]}")
        os.replace(folder, doomed)
    return doomed


def _remove(path: Path) -> None:
    with storing(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _abandoned(staged: Path) -> bool:
    """Return whether the process that staged a folder is gone: it is dead here, or was elsewhere and left it for a week."""
    _, host, pid, _ = staged.name.removeprefix(".doomed-").split("~")
    if host != socket.gethostname():
        return _size_and_time(staged)[1] < time.time() - ELSEWHERE_S
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
    """Yield the states of a path and the files in it; what goes meanwhile, as work that is sealed does, is left out."""
    with suppress(FileNotFoundError):
        yield path.lstat()
    for parent, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                yield os.lstat(Path(parent) / name)


def _size_and_time(path: Path) -> tuple[int, float]:
    """Return the bytes of all and the newest time, which is now where nothing is there any more."""
    files = list(_files(path))
    return sum(file.st_size for file in files), max((file.st_mtime for file in files), default=time.time())
