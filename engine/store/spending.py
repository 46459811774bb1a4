"""What has been spent on a model: counted in the store by all processes that ask it, over restarts and runs.

Owns the one small file of an account and its lock. Knows no server, no price and nothing of who asks; never forgets.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.errors import StoreError
from caiflow.engine.store.disk import storing

_AMOUNTS = struct.Struct("<qqq")
_RECORD = struct.Struct("<qqqI")  # calls, tokens, millionths of the currency, crc32 of those


class Spent(NamedTuple):
    """An amount: calls, tokens of prompts and answers together, and money in millionths of its currency."""

    calls: int = 0
    tokens: int = 0
    micros: int = 0

    def plus(self, other: Spent) -> Spent:
        """Return the sum."""
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Spent) -> Spent:
        """Return the difference."""
        return Spent(*(a - b for a, b in zip(self, other, strict=True)))

    def within(self, most: Most) -> str:
        """Return the first of its parts that is above its bound, or nothing."""
        parts = zip(self._fields, self, most, strict=True)
        return next((name for name, value, bound in parts if bound is not None and value > bound), "")


class Most(NamedTuple):
    """Bounds on what may be spent; None is no bound."""

    calls: int | None = None
    tokens: int | None = None
    micros: int | None = None


class Account:
    """One sum that many processes add to; without a `path` it is this process's own."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._own = Spent()
        self._descriptor = -1

    def take(self, amount: Spent, most: Most = Most()) -> tuple[Spent, str]:
        """Add `amount` where the sum stays within `most`; return the sum as it is now and the part that doesn't allow it.

        Raises:
            StoreError: the file can't be read or written, or it is damaged.
        """
        if self.path is None:
            self._own, above = _added(self._own, amount, most)
            return self._own, above
        with storing(self.path):
            descriptor = self._open(self.path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                before = self._read(descriptor)
                after, above = _added(before, amount, most)
                if after != before:
                    data = _AMOUNTS.pack(*after)
                    os.pwrite(descriptor, data + zlib.crc32(data).to_bytes(4, "little"), 0)
                return after, above
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _open(self, path: Path) -> int:
        if self._descriptor < 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self._descriptor

    def _read(self, descriptor: int) -> Spent:
        data = os.pread(descriptor, _RECORD.size + 1, 0)
        if not data:
            return Spent()
        if len(data) != _RECORD.size or zlib.crc32(data[: _AMOUNTS.size]) != _RECORD.unpack(data)[-1]:
            raise StoreError(f"{self.path}: what was spent can't be read", "remove the file to count anew from nothing")
        return Spent(*_AMOUNTS.unpack_from(data))


def _added(before: Spent, amount: Spent, most: Most) -> tuple[Spent, str]:
    after = before.plus(amount)
    above = after.within(most)
    return (before, above) if above else (after, "")
