"""One file of a ledger: its frames, its unbroken beginning, and the one process that may append to it.

A frame is payload size, crc32 of key and payload, the key of 16 bytes, and the payload. A frame that isn't whole counts as
absent; good ones behind it are found again, unless a process is still writing the file.

Whoever appended leaves beside a large file where its records are (`.keys`), so that the next to open it reads 24 bytes a record
instead of all. It counts while the file has the same size and time of change; each record is checked again when it is read.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from caiflow.engine.store.disk import sync

ELSEWHERE_S = 7 * 86400.0
"""What another machine has left unfinished, whose processes can't be seen, is left alone for this long."""
MAGIC = b"CAIFLOW1"
_HEAD = struct.Struct("<II16s")  # payload bytes, crc32 of key and payload, key
_KNOWN = struct.Struct("<8sQQQI")  # magic, the file's size and time of change, its records, crc32 of keys and offsets
_KNOWN_MAGIC = b"CAIKEYS1"
_LARGE = 1 << 20  # bytes of a file from which on its keys are kept beside it
_NEAR = 16384  # bytes between records up to which they are read at once
_CHUNK = 4 << 20  # bytes read at once; no mapping, since a writer may cut the file while it is read


def frame(key: bytes, payload: bytes) -> bytes:
    """Return a record as it stands in a file."""
    return _HEAD.pack(len(payload), zlib.crc32(payload, zlib.crc32(key)), key) + payload


def payload_of(record: bytes, key: bytes) -> bytes | None:
    """Return the payload of a record, or None where it isn't whole or isn't the key's."""
    if len(record) < _HEAD.size:
        return None
    length, crc, found = _HEAD.unpack_from(record)
    if found != key or len(record) != _HEAD.size + length or zlib.crc32(memoryview(record)[8:]) != crc:
        return None
    return record[_HEAD.size :]


class Segment:
    """One append-only file: `MAGIC`, then records. Held (flock) by the one process that appends."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.end = 0
        self.records = 0
        """Those that were seen or written here, of equal keys too."""
        self.damaged = 0
        """Places where what once was whole is damaged."""
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def scan(self) -> tuple[bytes, array[int]]:
        """Return the keys, joined, and the offsets of the good records behind those already seen."""
        keys, offsets = bytearray(), array("Q")
        if self.end == 0:
            if (known := self._known()) is not None:
                self.end, joined, places = known
                self.records = len(places)
                return joined, places
            self.end = len(MAGIC)
            self.damaged += os.pread(self.descriptor, len(MAGIC), 0) != MAGIC
        size = _CHUNK
        while data := os.pread(self.descriptor, size, self.end):
            done = _good(data, self.end, keys, offsets)
            if not done and not _cut(data, size):
                done = _next_good(data) if self._abandoned() else 0
                self.damaged += bool(done)
                if not done and len(data) < size:
                    break
            self.end += done
            size = _CHUNK if done else 4 * size
        self.records += len(offsets)
        return bytes(keys), offsets

    def scan_whole(self) -> tuple[bytes, array[int]]:
        """Return the keys and offsets of all records, read again."""
        self.end, self.records = len(MAGIC), 0
        return self.scan()

    @property
    def large(self) -> bool:
        """Whether it pays to `remember` where its records are."""
        return self.end >= _LARGE

    def remember(self, keys: bytes, offsets: array[int]) -> None:
        """Keep where all records of this file are, which is whole and which this process holds; only spares time."""
        stat, body = os.fstat(self.descriptor), keys + offsets.tobytes()
        temporary = self._keys.with_name(f"{self._keys.name}.{os.getpid()}-{id(self)}")
        head = _KNOWN.pack(_KNOWN_MAGIC, stat.st_size, stat.st_mtime_ns, len(offsets), zlib.crc32(body))
        try:
            temporary.write_bytes(head + body)
            os.replace(temporary, self._keys)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _known(self) -> tuple[int, bytes, array[int]] | None:
        """Return where the file as it is now ends, and what was kept of it."""
        stat = os.fstat(self.descriptor)
        try:
            data = self._keys.read_bytes() if stat.st_size >= _LARGE else b""
        except OSError:
            return None
        if len(data) < _KNOWN.size:
            return None
        magic, size, changed, records, crc = _KNOWN.unpack_from(data)
        body = memoryview(data)[_KNOWN.size :]
        same = (magic, size, changed) == (_KNOWN_MAGIC, stat.st_size, stat.st_mtime_ns)
        if not same or len(body) != 24 * records or zlib.crc32(body) != crc:
            return None
        return size, bytes(body[: 16 * records]), array("Q", bytes(body[16 * records :]))

    @property
    def _keys(self) -> Path:
        return self.path.with_suffix(".keys")

    def read(self, offset: int) -> bytes:
        """Return the record that begins at `offset`."""
        head = os.pread(self.descriptor, 4096, offset)
        size = _HEAD.size + int.from_bytes(head[:4], "little")
        return head[:size] if size <= len(head) else head + os.pread(self.descriptor, size - len(head), offset + len(head))

    def read_many(self, offsets: Sequence[int]) -> Iterator[bytes]:
        """Yield the records that begin at these rising offsets; what lies close together is read at once."""
        begin = 0
        while begin < len(offsets):
            end = begin + 1
            while end < len(offsets) and offsets[end] - offsets[end - 1] < _NEAR:
                end += 1
            start = offsets[begin]
            data = os.pread(self.descriptor, offsets[end - 1] - start + 4096, start)
            for offset in offsets[begin:end]:
                at = offset - start
                last = at + _HEAD.size + int.from_bytes(data[at : at + 4], "little")
                yield data[at:last] if last <= len(data) else self.read(offset)
            begin = end

    def _abandoned(self) -> bool:
        """Return whether no process appends here: the end of a file that is being written isn't damaged but unfinished."""
        with open(self.path, "rb") as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

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
        """Return whether all records of the file are good, up to its end."""
        return not self.damaged and len(MAGIC) <= self.end == os.fstat(self.descriptor).st_size

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
        self.records += 1
        return start

    def close(self) -> None:
        """Release and close."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def create(path: Path) -> None:
    """Make an empty segment that appears with its first bytes."""
    temporary = path.with_suffix(".new")
    with open(temporary, "xb") as file:
        file.write(MAGIC)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync(path.parent)


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


def _next_good(data: bytes) -> int:
    """Return where the first good record behind the damaged one at the beginning of `data` is, or 0 where there is none."""
    unpack, head, crc32, size = _HEAD.unpack_from, _HEAD.size, zlib.crc32, len(data)
    with memoryview(data) as view:
        for start in range(1, size - head + 1):
            length, crc, _ = unpack(view, start)
            if length <= size - head - start and crc32(view[start + 8 : start + head + length]) == crc:
                return start
    return 0


def _cut(data: bytes, asked: int) -> bool:
    """Return whether `data` is full and ends within its first record, so that more of the file may complete it."""
    return len(data) == asked and _HEAD.size + int.from_bytes(data[:4], "little") > len(data)
