"""What the store's file system is and does: its type, and whether locks, renames and syncs hold there, tried.

Owns the trial. Mends nothing, and decides nothing: `doctor` and a cluster's check say what was found.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.store.claims import Claims
from caiflow.engine.store.disk import sync, write_atomic
from caiflow.engine.store.file_digests import stamp

MARK = "seen-"
"""How folders begin in which a run leaves something for other nodes to find, for half a minute; `gc` has those of a kill."""
_SHARED = re.compile(r"nfs4?|lustre|cifs|smb3?|ceph|gpfs|beegfs|afs|9p|virtiofs|fuse\..*|fuse")
_ALONE = re.compile(r"nolock|local_lock=(?!none).*|localflock|noflock|nobrl")
_TRIED = b"caiflow's trial."
_LOCK = "lock"
_ASK = """
import sys
from pathlib import Path
from caiflow.engine.store.share import locks_had
print(*locks_had(Path(sys.argv[1])), sep=", ")
"""
_ANSWER_S = 30.0


class Mount(NamedTuple):
    """What a file system is called (`ext4`, `nfs4`; empty where the system doesn't tell) and its options."""

    kind: str
    options: frozenset[str] = frozenset()

    @property
    def shared(self) -> bool:
        """Whether other machines may see it."""
        return bool(_SHARED.fullmatch(self.kind))

    @property
    def alone(self) -> str:
        """The option by which its locks hold on one machine alone; empty where there is none such."""
        return next((option for option in sorted(self.options) if _ALONE.fullmatch(option)), "")


def mount_of(path: Path, table: Path = Path("/proc/self/mountinfo")) -> Mount:
    """Return the file system that a path lies on."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Mount("")
    found, longest = Mount(""), -1
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, (kind, *rest) = before.split(), after.split()
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        if len(place) >= longest and path.resolve().is_relative_to(place):  # of two on one place the later covers the other
            found, longest = Mount(kind, frozenset(",".join([fields[5], *rest[1:]]).split(","))), len(place)
    return found


class Held:
    """The locks of a trial, in a folder, held until `close`."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._claims = Claims(folder)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._claims.take(_TRIED)

    def close(self) -> None:
        """Give them up."""
        os.close(self._descriptor)
        self._claims.close()


def locks_had(folder: Path) -> list[str]:
    """Return which of the locks that another process holds in a folder this one has been given, too: none where they hold."""
    had, claims = [], Claims(folder)
    try:
        with open(folder / _LOCK, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            had.append("of files")
    except BlockingIOError:
        pass
    if claims.take(_TRIED):
        had.append("of parts of files")
    claims.close()
    return had


def faults(home: Path) -> Iterator[str]:
    """Try what the store needs of its file system, in a folder of its own there; yield what doesn't hold.

    Raises:
        OSError: nothing can be written there.
    """
    folder = home / f".doctor-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        for trial in (_locks, _renames, _syncs, _database):
            try:
                yield from trial(folder)
            except OSError as error:
                yield f"{trial.__name__.strip('_')}: {error.strerror or error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locks(folder: Path) -> Iterator[str]:
    held = Held(folder)
    try:
        asked = [sys.executable, "-c", _ASK, str(folder)]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    finally:
        held.close()
    if told := done.stdout.strip() if done.returncode == 0 else done.stderr.strip()[-200:]:
        yield f"locks {told} don't keep another process out"


def _renames(folder: Path) -> Iterator[str]:
    for text in ("old", "new"):
        write_atomic(folder / "file", text)
    if (folder / "file").read_text(encoding="utf-8") != "new":
        yield "a file renamed over another doesn't take its place"
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    try:
        os.rename(folder / "one", folder / "two")
        yield "a folder renamed over a full one takes its place"
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _syncs(folder: Path) -> Iterator[str]:
    file = folder / "synced"
    with open(file, "xb") as opened:
        opened.write(b"bytes")
        opened.flush()
        os.fsync(opened.fileno())
        before = stamp(file)
    sync(folder)
    if stamp(file) != before:
        yield "a file's time changes when it is closed: unchanged artifacts are hashed again each time"


def _database(folder: Path) -> Iterator[str]:
    try:
        with closing(sqlite3.connect(folder / "files.sqlite", timeout=1)) as database, database:
            database.execute("CREATE TABLE files (stamp TEXT)")
    except sqlite3.Error as error:
        yield f"SQLite can't write there ({error}): large files of yours are hashed in every run"
