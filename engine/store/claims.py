"""Who is at work on what: a lock for each key, in files of a ledger's folder, that ends with the process however it dies.

Owns those files: several, since a system goes through all locks of a file for each that it gives. Locks of the open file are
taken on Linux, so that two in one process exclude each other, too; over NFS they hold between machines. Where
a file system has no locks every claim is granted: work may then be done twice, never wrongly. Keeps no result.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")  # Linux: type, whence, start, length, pid
_OF_FILE: int | None = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None
_TAKEN = frozenset({errno.EAGAIN, errno.EACCES})
_PLACES = (1 << 62) - 1
_FILES = 16


class Claims:
    """The keys that this process works on, among all processes that use the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptors: dict[int, int] = {}
        self._held: set[bytes] = set()
        self._none = False

    def take(self, key: bytes) -> bool:
        """Claim a key; return False while somebody else, or another task of this process, has it."""
        if key in self._held:
            return False
        if not self._none and not self._lock(key, fcntl.F_WRLCK):
            return False
        self._held.add(key)
        return True

    def release(self, key: bytes) -> None:
        """Give a key up; what was made under it is in the ledger by then, where it went well."""
        self._held.discard(key)
        if not self._none:
            self._lock(key, fcntl.F_UNLCK)

    def close(self) -> None:
        """Give all up."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        self._none = True

    def _lock(self, key: bytes, kind: int) -> bool:
        place, file = int.from_bytes(key[:8], "big") & _PLACES, key[-1] % _FILES
        try:
            descriptor = self._descriptors.get(file)
            if descriptor is None:
                descriptor = self._descriptors[file] = self._opened(file)
            if _OF_FILE is None:
                how = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.lockf(descriptor, how, 1, place)
            else:
                fcntl.fcntl(descriptor, _OF_FILE, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
        except OSError as error:
            if error.errno in _TAKEN and file in self._descriptors:
                return False
            self.close()  # no locks here, or no leave to write
        return True

    def _opened(self, file: int) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        return os.open(self._folder / f"claims.{file:x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
