"""The ledger: results already paid for, by key, appended by many processes and never rewritten.

Owns the segment files of one namespace and the compact index over them. A record reaches the kernel before `append`
returns, so a killed process loses nothing; it reaches the disk with the next flush, about a second later. Never decides
what a key is made of.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import threading
import time
import uuid
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import StoreError
from caiflow.engine.store import store_error, storing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"CAIFLOW1"
_HEAD = struct.Struct("<II16s")  # payload bytes, crc32 of key and payload, key
_KEY = struct.Struct(">QQ")
_OFFSET_BITS = 44  # 16 TiB a segment, a million segments
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_CHUNK = 4 << 20  # bytes read at once; no mapping, since a writer may cut the file while it is read
_FLUSH_S = 1.0
_FRESH = 65536  # new records kept in a dict before they join the sorted index
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


class Ledger:
    """Records of one namespace: `key -> payload`, the last append wins.

    Reading needs no permission to write. A record cut off by a crash, and all behind it in the same file, count as absent.
    """

    def __init__(self, home: Path, namespace: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._@-]{1,200}", namespace) or namespace.startswith("."):
            raise ValueError(f"ledger: a namespace is a plain file name, got {namespace!r}")
        self.path = home / namespace
        self._lock = threading.RLock()
        self._segments: list[_Segment] = []
        self._known: dict[str, int] = {}
        self._index = _Index()
        self._own: _Segment | None = None
        self._dirty = False
        self._failed: StoreError | None = None
        self._closed = threading.Event()
        self._flusher: threading.Thread | None = None
        self.refresh()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._lock:
            return self._index.count()

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return self._index.find(key) is not None

    def __iter__(self) -> Iterator[bytes]:
        with self._lock:
            return self._index.keys()

    def get(self, key: bytes) -> dict[str, Any] | None:
        """Return the payload last appended under `key`, or None; a record that was damaged since counts as absent.

        Raises:
            StoreError: the file can't be read.
        """
        with self._lock:
            found = self._index.find(key)
            if found is None:
                return None
            segment = self._segments[found[0]]
        try:
            record = segment.read(found[1])
        except OSError as error:
            raise store_error(segment.path, error) from error
        return _payload(record, key)

    def append(self, key: bytes, payload: dict[str, Any]) -> None:
        """Keep `payload` (JSON) under `key` (16 bytes).

        Raises:
            StoreError: no space or no permission, now or at a flush since the last append.
        """
        data = _encode(payload).encode("utf-8", "surrogatepass")
        record = _HEAD.pack(len(data), zlib.crc32(data, zlib.crc32(key)), key) + data
        with self._lock:
            if self._failed or self._own is None:
                self._begin()
            assert self._own is not None
            try:  # `storing` costs as much as the write itself
                offset = self._own.write(record)
            except OSError as error:
                raise store_error(self.path, error) from error
            self._index.add(key, self._own.number, offset)
            self._dirty = True

    def flush(self) -> None:
        """Bring all appended records to the disk.

        Raises:
            StoreError: the disk refused.
        """
        with self._lock:
            own, dirty, self._dirty = self._own, self._dirty, False
        if own and dirty:
            with storing(self.path):
                os.fsync(own.descriptor)

    def refresh(self) -> None:
        """Read what other processes have appended since the last look."""
        with self._lock, storing(self.path):
            for name in sorted(os.listdir(self.path)) if self.path.is_dir() else []:
                if name.endswith(".seg"):
                    self._read(name)

    def close(self) -> None:
        """Flush, and let other processes append to this one's file; reading and appending end here."""
        self._closed.set()
        if self._flusher:
            self._flusher.join()
            self._flusher = None
        try:
            self.flush()
        finally:
            with self._lock:
                for segment in self._segments:
                    segment.close()
                self._own = None

    def _read(self, name: str) -> None:
        if name not in self._known:
            self._known[name] = len(self._segments)
            self._segments.append(_Segment(self.path / name, self._known[name]))
        number = self._known[name]
        if self._segments[number] is not self._own:
            self._index.load(number, *self._segments[number].scan())

    def _begin(self) -> None:
        """Take a file to append to: one that no process holds and that ends well, or a new one."""
        if self._closed.is_set():
            raise StoreError(f"{self.path}: the ledger is closed; open it again")
        if self._failed:
            error, self._failed = self._failed, None
            raise error
        with storing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.refresh()
            self._own = next((segment for segment in self._segments if self._take(segment)), None) or self._create()
        self._flusher = threading.Thread(target=self._flush_often, name="ledger-flush", daemon=True)
        self._flusher.start()

    def _take(self, segment: _Segment) -> bool:
        if not segment.hold():
            return False
        self._read(segment.path.name)  # what its last holder wrote since our look
        if segment.whole():
            return True
        segment.release()
        return False

    def _create(self) -> _Segment:
        while True:  # another process may take the new file first
            name = f"{int(time.time()):010d}-{uuid.uuid4().hex[:12]}.seg"
            _write_new(self.path / name)
            self._read(name)
            segment = self._segments[self._known[name]]
            if self._take(segment):
                return segment

    def _flush_often(self) -> None:
        while not self._closed.wait(_FLUSH_S):
            try:
                self.flush()
            except StoreError as error:
                self._failed = error


class _Run:
    """Records sorted by key: the two halves of each key as numbers, and its place; 24 bytes a record."""

    def __init__(self, high: NDArray[np.uint64], low: NDArray[np.uint64], places: NDArray[np.uint64]) -> None:
        """Sort; of equal keys only the last counts."""
        import numpy as np

        order = np.argsort(high, kind="stable")  # linear where two sorted runs are merged
        if np.any(high[order][1:] == high[order][:-1]):
            order = np.lexsort((low, high))  # stable too: the last of equal keys stays the last
        high, low = high[order], low[order]
        last = np.ones(len(order), dtype=bool)
        last[:-1] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        self.high, self.low, self.places = high[last], low[last], places[order][last]
        # plain ints out of a memoryview: five times faster to bisect than numpy scalars
        self._views = (memoryview(self.high), memoryview(self.low), memoryview(self.places))

    def __len__(self) -> int:
        return len(self.places)

    def find(self, high: int, low: int) -> int | None:
        """Return the place of a key, if it is here."""
        highs, lows, places = self._views
        at = bisect_left(highs, high)
        if at == len(highs) or highs[at] != high:
            return None
        if lows[at] != low:
            at = bisect_left(lows, low, at, bisect_right(highs, high, at))
        return places[at] if at < len(highs) and highs[at] == high and lows[at] == low else None


class _Index:
    """Where each key's last record is: a dict of fresh ones over few sorted runs, merged as they grow."""

    def __init__(self) -> None:
        self._fresh: dict[bytes, int] = {}
        self._runs: list[_Run] = []

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Return (segment number, offset) of a key's last record, if any."""
        place = self._fresh.get(key)
        if place is None:
            high, low = _KEY.unpack(key)
            place = next((found for run in reversed(self._runs) if (found := run.find(high, low)) is not None), None)
        return None if place is None else (place >> _OFFSET_BITS, place & _OFFSET_MASK)

    def add(self, key: bytes, segment: int, offset: int) -> None:
        """Enter one record."""
        self._fresh[key] = segment << _OFFSET_BITS | offset
        if len(self._fresh) >= _FRESH:
            self._settle()

    def load(self, segment: int, keys: bytes, offsets: array[int]) -> None:
        """Enter many records of one segment, in order of age."""
        import numpy as np

        if keys:
            self._settle()
            self._push(keys, np.frombuffer(offsets, np.uint64) | np.uint64(segment << _OFFSET_BITS))

    def keys(self) -> Iterator[bytes]:
        """Return all keys, sorted."""
        self._merge(all_runs=True)
        run = self._runs[0] if self._runs else None
        return (_KEY.pack(high, low) for high, low in zip(*run._views[:2], strict=True)) if run else iter(())

    def count(self) -> int:
        """Return the number of keys."""
        self._merge(all_runs=True)
        return sum(map(len, self._runs))

    def _settle(self) -> None:
        import numpy as np

        if self._fresh:
            fresh, self._fresh = self._fresh, {}
            self._push(b"".join(fresh), np.fromiter(fresh.values(), np.uint64, len(fresh)))

    def _push(self, keys: bytes, places: NDArray[np.uint64]) -> None:
        import numpy as np

        halves = np.frombuffer(keys, ">u8").astype(np.uint64).reshape(-1, 2)
        self._runs.append(_Run(halves[:, 0], halves[:, 1], places))
        self._merge()

    def _merge(self, all_runs: bool = False) -> None:
        """Merge neighbours until each run is at least twice its successor, so that few remain."""
        import numpy as np

        if all_runs:
            self._settle()
        while len(self._runs) > 1 and (all_runs or len(self._runs[-2]) < 2 * len(self._runs[-1])):
            new, old = self._runs.pop(), self._runs.pop()
            pairs = ((old.high, new.high), (old.low, new.low), (old.places, new.places))
            self._runs.append(_Run(*(np.concatenate(pair) for pair in pairs)))


class _Segment:
    """One append-only file: `MAGIC`, then records. Held (flock) by the one process that appends."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.end = 0
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def scan(self) -> tuple[bytes, array[int]]:
        """Return the keys, joined, and the offsets of the good records behind those already seen."""
        keys, offsets = bytearray(), array("Q")
        if self.end == 0:
            self.end = len(MAGIC) if os.pread(self.descriptor, len(MAGIC), 0) == MAGIC else 0
        size = _CHUNK
        while self.end and (data := os.pread(self.descriptor, size, self.end)):
            done = _good(data, self.end, keys, offsets)
            self.end += done
            if not done and not _cut(data, size):
                break
            size = _CHUNK if done else 4 * size
        return bytes(keys), offsets

    def read(self, offset: int) -> bytes:
        """Return the record that begins at `offset`."""
        head = os.pread(self.descriptor, 4096, offset)
        size = _HEAD.size + int.from_bytes(head[:4], "little")
        return head[:size] if size <= len(head) else head + os.pread(self.descriptor, size - len(head), offset + len(head))

    def hold(self) -> bool:
        """Become the one that appends, if no process is and writing is allowed."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except (PermissionError, FileNotFoundError):  # another user's, or cleaned away: a new one beside it will do
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.close(self.descriptor)
        self.descriptor = descriptor
        return True

    def release(self) -> None:
        """Let others append."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def whole(self) -> bool:
        """Say whether the file ends with a good record."""
        return len(MAGIC) <= self.end == os.fstat(self.descriptor).st_size

    def write(self, record: bytes) -> int:
        """Append one record and return where it begins; a part written to a full disk is taken back."""
        start, done = self.end, 0
        try:
            while done < len(record):
                done += os.pwrite(self.descriptor, record[done:] if done else record, start + done)
        except OSError:
            os.ftruncate(self.descriptor, start)
            raise
        self.end = start + done
        return start

    def close(self) -> None:
        """Release and close."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def _write_new(path: Path) -> None:
    """Make an empty segment that appears with its first bytes."""
    temporary = path.with_suffix(".new")
    with open(temporary, "xb") as file:
        file.write(MAGIC)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _good(data: bytes, at: int, keys: bytearray, offsets: array[int]) -> int:
    """Enter the good records at the beginning of `data`, which begins `at` in the file; return the bytes they take."""
    unpack, head, crc32, size = _HEAD.unpack_from, _HEAD.size, zlib.crc32, len(data)
    start = 0
    with memoryview(data) as view:
        while start + head <= size:
            length, crc, key = unpack(view, start)
            end = start + head + length
            if end > size or crc32(view[start + 8 : end]) != crc:
                break
            keys += key
            offsets.append(at + start)
            start = end
    return start


def _cut(data: bytes, asked: int) -> bool:
    """Say whether `data` is full and ends within its first record, so that more of the file may complete it."""
    return len(data) == asked and _HEAD.size + int.from_bytes(data[:4], "little") > len(data)


def _payload(record: bytes, key: bytes) -> dict[str, Any] | None:
    length, crc, found = _HEAD.unpack_from(record)
    if found != key or len(record) != _HEAD.size + length or zlib.crc32(memoryview(record)[8:]) != crc:
        return None
    payload: dict[str, Any] = json.loads(record[_HEAD.size :].decode("utf-8", "surrogatepass"))
    return payload
