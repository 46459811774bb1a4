"""Data files as they lie on the disk: plain, or packed by gzip, zstd or zip; and the record that any of them is read into.

Knows how a file is packed, never what is written in it. Whatever a file unpacks to and however long its lines are,
no more of it is held than the bounds here say.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from caiflow.engine.errors import WrongValue

PACKED = (".gz", ".zst", ".zip")
LONGEST_LINE = 32 << 20
"""Bytes of a line."""
LARGEST_DOCUMENT = 64 << 20
"""Characters of a document that is read whole."""
_LINES_AT_ONCE, _BYTES_AT_ONCE = 64, 1 << 20  # as many as stay in the cache of a core while they are read
_ALWAYS_UNPACKED = 64 << 20
_MOST_TIMES = 400
"""A file that unpacks to more than this many times its size, and to more bytes than these, is no data."""


class Line(NamedTuple):
    """One record as read: `place` is its line (its number in parquet), `data` its fields, or `error` why it has none."""

    place: int
    data: Mapping[str, Any] | None
    error: str = ""
    text: str = ""


def plain_name(name: str) -> str:
    """Return a file's name as it is without its packing: `a.jsonl` of `a.jsonl.gz`."""
    packing = next((suffix for suffix in PACKED if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(packing)]


def inner_name(path: Path) -> str:
    """Return the name that tells how a file is written, in small letters: its own without its packing, or that in a zip.

    Raises:
        ValueError: a zip that doesn't have one file.
    """
    return (_member(path) if _suffix(path) == ".zip" and path.is_file() else plain_name(path.name)).lower()


def _suffix(path: Path) -> str:
    return path.suffix.lower()


class _Unpacked(io.RawIOBase):
    """The bytes that a packed file unpacks to, as far as data does.

    Raises:
        ValueError: while it is read, once it has become larger than data does, or where it is broken.
    """

    def __init__(self, packed: IO[bytes], path: Path) -> None:
        self._packed = packed
        self._name = path.name
        self._left = max(_ALWAYS_UNPACKED, _MOST_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what fits into the buffer."""
        try:
            data = self._packed.read(len(buffer))
        except (EOFError, OSError):
            raise
        except Exception as error:  # each library that unpacks has its own
            raise ValueError(f"{self._name}: can't be unpacked: {error}") from error
        self._left -= len(data)
        if self._left < 0:
            raise WrongValue(
                f"{self._name}: it unpacks to more than {_MOST_TIMES} times its size", "unpack it, if it is what it should be"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the packed file."""
        self._packed.close()
        super().close()


def refuse_irregular(path: Path) -> None:
    """Raise for what is there but is no file of data: a folder, a device, a pipe, which may have no end.

    Raises:
        ValueError: it is one of them.
    """
    if path.exists() and not path.is_file():
        raise WrongValue(f"{path.name}: not a regular file", "name a file of data")


def open_bytes(path: Path) -> IO[bytes]:
    """Return the bytes of a file, unpacked."""
    refuse_irregular(path)
    packed = _packed(path)
    return path.open("rb", 1 << 16) if packed is None else io.BufferedReader(_Unpacked(packed, path), 1 << 20)


def _packed(path: Path) -> IO[bytes] | None:
    if _suffix(path) == ".gz":
        import gzip

        return cast(IO[bytes], gzip.open(path))
    if _suffix(path) == ".zst":
        import pyarrow as pa

        return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    if _suffix(path) == ".zip":
        import zipfile

        try:
            return zipfile.ZipFile(path).open(_member(path))
        except (RuntimeError, NotImplementedError) as error:  # a password, or a packing that Python hasn't
            raise WrongValue(f"{path.name}: can't be unpacked: {error}", "unpack it, and name the file in it") from error
    return None


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers.

    Raises:
        ValueError: a line is too long to be a record.
    """
    for number, lines in blocks_of_lines(path):
        yield from enumerate(lines, number)


def blocks_of_lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the same, some lines at a time, with the number of the first."""
    with open_utf8(path) as file:
        number, read = 1, iter(partial(file.readline, LONGEST_LINE + 1), b"")
        while lines := _some(read):
            if max(map(len, lines)) > LONGEST_LINE:
                good = next(place for place, line in enumerate(lines) if len(line) > LONGEST_LINE)
                yield number, lines[:good]
                told = f"{path.name}:{number + good}: a line of more than {LONGEST_LINE >> 20} MiB"
                raise WrongValue(told, "write one record a line")
            yield number, lines
            number += len(lines)


def _some(lines: Iterator[bytes]) -> list[bytes]:
    """Return the next lines, fewer where they are long; none at the end."""
    found, size = [], 0
    for line in islice(lines, _LINES_AT_ONCE):
        found.append(line)
        size += len(line)
        if size > _BYTES_AT_ONCE:
            break
    return found


class _Recoded(io.RawIOBase):
    """The bytes of a text in UTF-8."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._left = b""

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what fits into the buffer."""
        self._left = self._left or self._text.read(1 << 16).encode()
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Close the text."""
        self._text.close()
        super().close()


def is_utf16(path: Path) -> bool:
    """Return whether a file begins with a mark of UTF-16, as Windows' tools write it."""
    with open_bytes(path) as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_utf8(path: Path) -> IO[bytes]:
    """Return the bytes of a file of text, unpacked, in UTF-8 also where it is UTF-16."""
    return io.BufferedReader(_Recoded(open_text(path, "utf-16"))) if is_utf16(path) else open_bytes(path)


def open_text(path: Path, encoding: str = "utf-8-sig") -> io.TextIOWrapper:
    """Return the text of a file, with its line ends as they are."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def _member(path: Path) -> str:
    import zipfile

    try:
        with zipfile.ZipFile(path) as packed:
            names = [name for name in packed.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path.name}: can't be read: {error}") from error
    if len(names) != 1:
        raise WrongValue(f"{path.name}: it has {len(names)} files ({', '.join(names[:3])})", "unpack it, and name one of them")
    return names[0]
