"""The store: artifacts under their digests, folders for work in progress, and the index of runs.

Owns the layout of $CAIFLOW_HOME. An artifact appears whole or not at all, and never changes. Never computes a step's
digest, and never deletes an artifact (see gc).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caiflow.engine.errors import DamagedError, StoreError
from caiflow.engine.identity import digest
from caiflow.engine.store.disk import storing, sync, sync_tree, write_atomic
from caiflow.engine.store.file_digests import (
    FileCache,
    Manifest,
    Stamp,
    file_digest,
    folder_files,
    folder_manifest,
    stamp,
)

ADAPTER = "adapter_config.json"
META = ".caiflow.json"  # hidden: `datasets` reads every other file of a folder


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a step wrote: a sealed folder. `content` is the digest over its files, those that begin with `_` aside."""

    path: Path
    digest: str
    content: str
    kind: str = "rows"
    components: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    rows_in: int | None = None
    rows_out: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    """All that was given to `seal`, the fields above included."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every file by relative path, those that begin with `_` included."""
    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    """Size and time of every file when it was sealed; empty in an artifact of an early version."""

    @property
    def failed(self) -> int:
        """The number of rows that failed and were set aside."""
        return int(self.meta.get("counts", {}).get("failed") or 0)

    @property
    def may_pass(self) -> int:
        """The number of those that failed for a reason that may pass; all of them in an artifact of an early version."""
        return int(self.meta.get("counts", {}).get("may_pass", self.failed))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run that used this store; `artifacts` and `ledgers` are what it reaches."""

    name: str
    run_dir: Path
    recorded: float
    """Unix time of the first record."""
    host: str = ""
    """The machine that the run is on; empty in a record of an early version."""
    artifacts: tuple[str, ...] = ()
    ledgers: tuple[str, ...] = ()


def default_home() -> Path:
    """Return $CAIFLOW_HOME, or ~/.cache/caiflow.

    Raises:
        StoreError: neither is there: the user has no home folder.
    """
    try:
        return Path(os.environ.get("CAIFLOW_HOME") or "~/.cache/caiflow").expanduser().absolute()
    except RuntimeError as error:
        hint = "set CAIFLOW_HOME to a folder in which results may be kept"
        raise StoreError("this user has no home folder, where results would be kept", hint) from error


def short(digest: str) -> str:
    """Return the name that a digest has where a folder or file is named after it: its first 128 bits."""
    return digest[:32]


class Store:
    """A folder of artifacts that many processes may use at once. Creating one touches no disk."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or default_home()).absolute()
        self.artifacts_dir = self.home / "artifacts"
        self.staging_dir = self.home / "staging"
        self.aside_dir = self.home / "aside"
        self.work = self.home / "work"
        self.ledger_dir = self.home / "ledger"
        self.runs_dir = self.home / "runs"
        self.files = FileCache(self.home / "files.sqlite")

    def path(self, digest: str) -> Path:
        """Return where the artifact with this digest is or would be."""
        return self.artifacts_dir / digest[:2] / digest

    def artifact(self, digest: str) -> Artifact | None:
        """Return the sealed artifact, or None where there is none.

        A file that has its size and time of then counts as unchanged, until `distrust`; any other is hashed.

        Raises:
            DamagedError: it is there, but not as it was sealed.
        """
        path = self.path(digest)
        if not path.is_dir():
            return None
        artifact = read_artifact(path)
        for name in set(folder_files(path)).difference(artifact.files):
            raise DamagedError(f"{path}: {name} isn't one of its files", "run again, which makes it anew")
        for name, sha256 in artifact.files.items():
            if said := self._difference(path / name, sha256, artifact.stamps.get(name)):
                raise DamagedError(f"{path}: {name} {said}", "run again, which makes it anew")
        return artifact

    def _difference(self, file: Path, sha256: str, sealed: Stamp | None) -> str:
        """Return how a file differs from what was sealed; nothing where it doesn't."""
        try:
            now = stamp(file)
            if now == sealed:
                return ""
            if sealed is not None and now.size != sealed.size:
                return f"has {now.size} bytes, not {sealed.size}"
            return "" if file_digest(file, self.files) == sha256 else "has changed"
        except FileNotFoundError:
            return "is missing"

    def set_aside(self, digest: str) -> Path:
        """Move an artifact that is to be made anew out of the way, and return where it is now; `gc` removes it."""
        path = self.aside_dir / f"{short(digest)}~{uuid.uuid4().hex[:8]}"
        with storing(self.home), suppress(FileNotFoundError):  # another process was first
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.path(digest), path)
        return path

    def stage(self, digest: str) -> Path:
        """Return a new empty folder on the store's file system, for `seal`."""
        path = self.staging_dir / f"{short(digest)}~{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
        with storing(self.home):
            path.mkdir(parents=True)
        return path

    def spent_path(self, spec_name: str, model_identity: str) -> Path:
        """Return the file that counts what all runs of a spec have spent on a served model."""
        return self.home / "spent" / short(digest([spec_name, model_identity]))

    def taught_path(self, address: str, model: str) -> Path:
        """Return the file that keeps how a server wants to be asked for a model."""
        return self.taught_dir / f"{short(digest([address, model]))}.json"

    @property
    def taught_dir(self) -> Path:
        """Where that is kept of all servers."""
        return self.home / "taught"

    def work_dir(self, digest: str) -> Path:
        """Return the folder for checkpoints of this step; it survives kills and goes with `seal`."""
        path = self.work_path(digest)
        with storing(self.home):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def work_path(self, digest: str) -> Path:
        """Return where the checkpoints of this step are or would be."""
        return self.work / short(digest)

    @contextmanager
    def claim(self, digest: str, timeout_s: float = 0.0, poll_s: float = 0.2) -> Iterator[bool]:
        """Hold a step's work for this process alone; yields whether it could be had within `timeout_s`.

        The claim ends with the block or with the process, however it dies. Look for the artifact again once it is held:
        the process that had it before may have sealed it.
        """
        path = self.work / f"{short(digest)}.claim"
        with storing(self.home):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with storing(self.home):
                held = _locked(descriptor, time.monotonic() + timeout_s, poll_s)
            yield held
        finally:
            os.close(descriptor)

    def seal(self, digest: str, staged: Path, meta: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Artifact:
        """Make the staged folder the artifact of `digest`, durable on disk; if another process was first, return its.

        `meta` may hold kind, components, metrics, rows_in, rows_out and whatever else is JSON. The work folder is removed.
        `files` are the sha256 that the files must have.

        Raises:
            StoreError: no space or no permission; no half-made artifact is left.
            DamagedError: the files aren't those.
        """
        with storing(self.home):
            present = self._lasting(digest, staged, meta) or self._move(digest, staged, meta, files)
            shutil.rmtree(staged, ignore_errors=True)
            shutil.rmtree(self.work_path(digest), ignore_errors=True)
            return present

    def _lasting(self, digest: str, staged: Path, meta: Mapping[str, Any]) -> Artifact | None:
        """Return the artifact where it is there and stays; a damaged one gives way, and one whose failed rows came out anew."""
        try:
            present = self.artifact(digest)
        except DamagedError:
            self.set_aside(digest)
            return None
        if present is None or not present.may_pass:
            return present
        same = present.may_pass == meta.get("counts", {}).get("may_pass")
        if same and present.content == content_manifest(staged)["content"]:
            return present
        self.set_aside(digest)
        return None

    def _move(self, digest: str, staged: Path, meta: Mapping[str, Any], files: Mapping[str, str] | None) -> Artifact:
        made = content_manifest(staged)
        if files is not None and (other := sorted(name for name, _ in {*made["files"].items()} ^ {*files.items()})):
            raise DamagedError(f"{other[0]} isn't what was sealed", "run again, which makes it anew")
        made["stamps"] = {name: stamp(staged / name) for name in made["files"]}
        record = {"format": 2, "digest": digest, **made, "sealed": round(time.time(), 3), "meta": dict(meta)}
        record = json.loads(json.dumps(record, default=str))
        record["check"] = _check(record)
        (staged / META).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _readable_alike(staged)
        sync_tree(staged)
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(staged, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync(target.parent)
        return read_artifact(target)

    def artifacts(self) -> Iterator[Path]:
        """Yield the folder of every sealed artifact."""
        yield from sorted(path for path in self.artifacts_dir.glob("??/*") if not path.name.startswith("."))

    def record_run(self, name: str, run_dir: Path, *, artifacts: Iterable[str] = (), ledgers: Iterable[str] = ()) -> None:
        """Remember that a run uses these artifacts and ledger namespaces; later calls for the same folder add to it."""
        run_dir = run_dir.absolute()
        path = self.runs_dir / f"{short(digest(str(run_dir)))}.json"
        with storing(self.home):
            old = _read_run(path)
            record = {
                "name": name,
                "run_dir": str(run_dir),
                "recorded": old.recorded if old else time.time(),
                "host": socket.gethostname(),
                "artifacts": sorted({*artifacts, *(old.artifacts if old else ())}),
                "ledgers": sorted({*ledgers, *(old.ledgers if old else ())}),
            }
            write_atomic(path, json.dumps(record, indent=1))

    def runs(self) -> list[RunRecord]:
        """Return the runs whose folders still exist, oldest first."""
        found = [record for _, record in self.run_records() if record and record.run_dir.is_dir()]
        return sorted(found, key=lambda record: record.recorded)

    def run_records(self) -> Iterator[tuple[Path, RunRecord | None]]:
        """Yield the record of every run with where it is; None for one that can't be read."""
        for path in self.runs_dir.glob("[!.]*.json"):
            yield path, _read_run(path)


def distrust(file: Path) -> None:
    """Make a file that was hashed, and isn't what was sealed, no longer count as unchanged by its size and time."""
    with suppress(OSError):  # it is gone, or its store is only read from here
        os.utime(file)


def _readable_alike(folder: Path) -> None:
    """Give every file the permissions of a plain new one: some libraries write weights that only their owner may read."""
    mode = stat.S_IMODE((folder / META).stat().st_mode)
    for parent, _, names in os.walk(folder):
        for name in names:
            os.chmod(Path(parent) / name, mode)


def content_manifest(folder: Path) -> dict[str, Any]:
    """Return {"files", "content"} of a folder: every file's sha256, and the digest without those that begin with `_`.

    Where an adapter's base model lay when it was trained doesn't count either: the same adapter is the same in any store.
    """
    manifest: Manifest = folder_manifest(folder)
    counted = {
        name: sha256 for name, sha256 in manifest["files"].items() if not any(p.startswith("_") for p in name.split("/"))
    }
    if ADAPTER in counted:
        config = json.loads((folder / ADAPTER).read_bytes())
        counted[ADAPTER] = digest({name: value for name, value in config.items() if name != "base_model_name_or_path"})
    return {"files": manifest["files"], "content": digest(counted)}


def read_artifact(path: Path) -> Artifact:
    """Read a sealed folder's own record.

    Raises:
        DamagedError: the record is missing or damaged.
    """
    try:
        record = (path / META).read_bytes()
    except OSError as error:
        raise _not_whole(path, error) from error
    return parse_record(record, path)


def parse_record(text: bytes, path: Path) -> Artifact:
    """Read the record of an artifact that lies, or is to lie, at `path`.

    Raises:
        DamagedError: the record is damaged.
    """
    try:
        record = json.loads(text)
        check = record.pop("check", None)
        if (check is not None or record["format"] != 1) and check != _check(record):  # an early version has none
            raise ValueError("its record has changed")
        meta = record["meta"]
        given = {name: meta[name] for name in ("kind", "components", "metrics", "rows_in", "rows_out") if name in meta}
        stamps = {name: Stamp(*values) for name, values in record.get("stamps", {}).items()}
        return Artifact(path, record["digest"], record["content"], meta=meta, files=record["files"], stamps=stamps, **given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_whole(path, error) from error


def _not_whole(path: Path, error: Exception) -> DamagedError:
    return DamagedError(f"{path}: not a whole artifact, got {error!r}", "run again, which makes it anew")


def _check(record: Mapping[str, Any]) -> int:
    """Return the crc32 of an artifact's own record."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _read_run(path: Path) -> RunRecord | None:
    try:
        record = json.loads(path.read_bytes())
        lists = {name: tuple(record[name]) for name in ("artifacts", "ledgers")}
        return RunRecord(
            record["name"], Path(record["run_dir"]), float(record["recorded"]), host=record.get("host", ""), **lists
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _locked(descriptor: int, until: float, poll_s: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(poll_s)
