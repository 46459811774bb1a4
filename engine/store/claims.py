"""Who is at work on what: a lock for each key, in files of a ledger's folder, that ends with the process however it dies.

Owns those files: several, since a system goes through all locks of a file for each that it gives. Locks of the open file are
taken on Linux, so that two in one process exclude each other, too; over NFS they hold between machines. Where
a file system has no locks every claim is granted: work may then be done twice, never wrongly. Keeps no result.

A process that is frozen, or whose machine can't be reached, keeps its locks. Whoever knows that it is lost has all claims go
over to new files (`forsake`): what others hold in the old ones may then be done twice, which is a few calls.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")  # Linux: type, whence, start, length, pid
_OF_FILE: int | None = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None
_TAKEN = frozenset({errno.EAGAIN, errno.EACCES})
_PLACES = (1 << 62) - 1
_FILES = 16
_NO_LOCK = -1
_TRIES = 3
"""New files in a row, after which a claim is granted: there are file systems on which a file never stays the same."""


class Claims:
    """The keys that this process works on, among all processes that use the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = f"{folder}/claims."
        self._files: dict[int, _File] = {}
        self._left: list[_File] = []
        self._held: dict[bytes, int] = {}
        self._none = False

    def take(self, key: bytes) -> bool:
        """Claim a key; return False while somebody else, or another task of this process, has it."""
        if key in self._held:
            return False
        descriptor = self._locked(key)
        if descriptor is None:
            return False
        self._held[key] = descriptor
        return True

    def release(self, key: bytes) -> None:
        """Give a key up; what was made under it is in the ledger by then, where it went well."""
        descriptor = self._held.pop(key, _NO_LOCK)
        if descriptor != _NO_LOCK and not self._none:
            with suppress(OSError):
                _lock(descriptor, key, fcntl.F_UNLCK)

    def close(self) -> None:
        """Give all up."""
        for file in [*self._files.values(), *self._left]:
            os.close(file.descriptor)
        self._files, self._left = {}, []
        self._none = True

    def _locked(self, key: bytes) -> int | None:
        """Return the descriptor in which a key is locked now, or none where there are no locks; None where another has it."""
        number = key[-1] % _FILES
        try:
            for _ in range(_TRIES):
                if self._none:
                    return _NO_LOCK
                file = self._files.get(number) or self._opened(number)
                taken = _lock(file.descriptor, key, fcntl.F_WRLCK)
                if taken is not None and file.stays():
                    return file.descriptor if taken else None
                self._left.append(self._files.pop(number))  # which may have locks of ours yet
        except OSError:
            pass
        self.close()  # no locks here, no leave to write, or no file that stays
        return _NO_LOCK

    def _opened(self, number: int) -> _File:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._files.setdefault(number, _File(f"{self._place}{number:x}"))


class _File:
    """An open file of claims; a lock in it counts while it is the one of its name."""

    __slots__ = ("_inode", "_path", "descriptor")

    def __init__(self, path: str) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._inode = os.fstat(self.descriptor).st_ino

    def stays(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False


def forsake(ledgers: Path) -> None:
    """Have no claim count any more that is held now in the folders of these ledgers: one that had some is known to be lost."""
    for path in ledgers.glob("*/claims.*"):
        with suppress(OSError):  # another user's, or just removed
            path.unlink()


def _lock(descriptor: int, key: bytes, kind: int) -> bool | None:
    """Take or give up a key's lock; return False where another has it, None where the file has gone from its server."""
    place = int.from_bytes(key[:8], "big") & _PLACES
    try:
        if _OF_FILE is None:
            how = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB
            fcntl.lockf(descriptor, how, 1, place)
        else:
            fcntl.fcntl(descriptor, _OF_FILE, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
    except OSError as error:
        if error.errno == errno.ESTALE:
            return None
        if error.errno not in _TAKEN:
            raise
        return False
    return True
