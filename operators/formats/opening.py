"""Data files as they lie on the disk: plain, or packed by gzip, zstd or zip; and the record that any of them is read into.

Knows how a file is packed, never what is written in it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from caiflow.engine.errors import WrongValue

PACKED = (".gz", ".zst", ".zip")


class Line(NamedTuple):
    """One record as read: `place` is its line (its number in parquet), `data` its fields, or `error` why it has none."""

    place: int
    data: Mapping[str, Any] | None
    error: str = ""
    text: str = ""


def plain_name(name: str) -> str:
    """Return a file's name as it is without its packing: `a.jsonl` of `a.jsonl.gz`."""
    packing = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    return name.removesuffix(packing)


def inner_name(path: Path) -> str:
    """Return the name that tells how a file is written: its own without its packing, or that of the one file in a zip.

    Raises:
        ValueError: a zip that doesn't have one file.
    """
    return _member(path) if path.suffix == ".zip" and path.is_file() else plain_name(path.name)


def open_bytes(path: Path) -> IO[bytes]:
    """Return the bytes of a file, unpacked."""
    if path.suffix == ".gz":
        import gzip

        return cast(IO[bytes], gzip.open(path))
    if path.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    if path.suffix == ".zip":
        import zipfile

        return zipfile.ZipFile(path).open(_member(path))
    return path.open("rb")


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
