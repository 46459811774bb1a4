"""The content digests of files and folders, and the memory that keeps large files from being hashed twice."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

from caiflow.engine.identity import digest

_RACY_NS = 2_000_000_000  # a file changed this recently may change again within the clock's grain: not remembered


class Stamp(NamedTuple):
    """What a look at a file without reading it tells: `size` in bytes, `mtime_ns` since 1970."""

    size: int
    mtime_ns: int


def stamp(file: Path) -> Stamp:
    """Return a file's size and time.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found = file.stat()
    return Stamp(found.st_size, found.st_mtime_ns)


class Manifest(TypedDict):
    """The content of a folder: the sha256 of every file by its relative path, and the digest over those."""

    files: dict[str, str]
    digest: str


@dataclass(frozen=True, slots=True)
class FileCache:
    """Remembers file digests by device, inode, size and times in one small database; safe with many processes.

    A database that can't be opened or written only costs time: files are then hashed again.
    """

    path: Path

    def get(self, stat: os.stat_result) -> str | None:
        """Return the remembered digest of the file that has this `stat`, if any."""
        try:
            with closing(self._open()) as database:
                found = database.execute("SELECT sha256 FROM files WHERE stamp = ?", (_stamp(stat),)).fetchone()
        except (sqlite3.Error, OSError):
            return None
        return str(found[0]) if found else None

    def put(self, stat: os.stat_result, sha256: str) -> None:
        """Remember a digest, unless the file is so young that it may yet change unseen."""
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < _RACY_NS:
            return
        try:
            with closing(self._open()) as database, database:
                database.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (_stamp(stat), sha256))
        except (sqlite3.Error, OSError):
            return

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=10)
        database.execute("CREATE TABLE IF NOT EXISTS files (stamp TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID")
        return database


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def file_digest(path: Path, cache: FileCache | None = None) -> str:
    """Return the sha256 of a file's bytes, 64 hex characters; hashed once for as long as the file stays as it is."""
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        known = cache.get(before) if cache else None
        if known:
            return known
        found = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if cache and _stamp(before) == _stamp(after):
        cache.put(after, found)
    return found


def folder_manifest(folder: Path, cache: FileCache | None = None, *, keep: Callable[[str], bool] | None = None) -> Manifest:
    """Return the digests of a folder's files and the digest over them; hidden files don't count, links are followed.

    `keep` says of each relative path (with `/`) whether it counts. Moving or renaming the folder changes nothing.
    """
    names = [name for name in folder_files(folder) if keep is None or keep(name)]
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda name: file_digest(folder / name, cache), names))
    files = dict(zip(names, digests, strict=True))
    return {"files": files, "digest": digest(files)}


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each of a folder's files that aren't hidden, by relative path."""
    return {name: (folder / name).stat().st_size for name in folder_files(folder)}


def folder_files(folder: Path) -> list[str]:
    """Return the relative paths of a folder's files that aren't hidden, sorted, with `/`."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(folder)
        found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)
