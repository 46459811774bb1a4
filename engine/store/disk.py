"""Writing to disk so that it lasts: atomic files, syncs, and what an error of the file system means. Knows no artifact."""

from __future__ import annotations

import errno
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caiflow.engine.errors import StoreError
from caiflow.engine.machine import home

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file size limit is reached"}
_LOCKLESS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP}
_REFUSED = {errno.EACCES: "no permission", errno.EPERM: "no permission", errno.EROFS: "the file system is read-only"}


@contextmanager
def storing(where: Path) -> Iterator[None]:
    """Turn errors of the file system into StoreError with what to do.

    Raises:
        StoreError: no space, no permission, or another error of the disk.
    """
    try:
        yield
    except OSError as error:
        raise store_error(where, error) from error


def store_error(where: Path, error: OSError) -> StoreError:
    """Say what an error of the file system means and what to do about it."""
    # Arrow raises plain OSError with the number in its text only
    number = error.errno or next((number for number in (*_FULL, *_REFUSED) if os.strerror(number) in str(error)), None)
    if number in _FULL:
        return StoreError(
            f"{where}: {_FULL[number]}", "free some (`caiflow gc`), or set CAIFLOW_HOME to another disk, and run again"
        )
    if number in _REFUSED:
        return StoreError(f"{where}: {_REFUSED[number]} to write here", "set CAIFLOW_HOME to a folder of yours")
    if number in _LOCKLESS:
        hint = "mount it with locks (NFS with its lock service, Lustre with `-o flock`), or set CAIFLOW_HOME to another disk"
        return StoreError(f"{where}: the file system gives no locks, got {error}", f"{hint}; `caiflow doctor` tries them")
    return StoreError(f"{where}: can't read or write, got {error}", "check the disk")


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new text, never a part, after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def point(link: Path, target: Path) -> None:
    """Make `link` lead to a folder, in the place of an earlier link; relative where the two may move together.

    They may where a folder of a user's holds both, as a project's does; a home folder as a whole isn't moved.
    """
    parent, led = link.parent.resolve(), target.resolve() if target.is_absolute() else target
    shared = Path(os.path.commonpath([parent, led])) if led.is_absolute() else parent
    if led.is_absolute() and not home().is_relative_to(shared):
        target = Path(os.path.relpath(led, parent))
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target, target_is_directory=True)
    os.replace(fresh, link)


def sync(path: Path) -> None:
    """Make a file or a folder's list of names durable; some shared file systems do the latter by themselves, and refuse it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make a folder and all in it durable."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def finite(value: Any) -> Any:
    """Return a value as JSON can hold it: null for a number in it that is NaN or infinite, which most readers refuse."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
