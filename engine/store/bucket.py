"""Sealed artifacts in a bucket, beside the store: kept there for other machines, and fetched where a store lacks them.

Owns what lies under the address in $CAIFLOW_ARTIFACTS: files under their own sha256, and for each artifact its record, which
comes last: what has no record doesn't count, however its sending ended. Whatever is fetched is hashed before a store takes it.
Never keeps a ledger, a checkpoint or a run, and never removes anything.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from caiflow.engine.errors import DamagedError, StoreError
from caiflow.engine.store.artifacts import META, Artifact, Store, parse_record
from caiflow.engine.store.disk import storing

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

VARIABLE = "CAIFLOW_ARTIFACTS"
_CHUNK = 8 << 20  # bytes read at once; Arrow sends parts of ten million
_AT_ONCE = 4
_RETRY_S = 30
_SHOWN = 300  # characters of what a server or Arrow says
_KEYS = "give them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws or the machine's role; for gs:// by gcloud"
_MAKE = "make it, or mend its name; caiflow makes none"
_NETWORK = "check the network, and `endpoint_override` in the address, then run again"
_USUAL = "name a place as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///FOLDER; `caiflow doctor` tries it"
_WORDS = (
    ("no_such_bucket", "there is no such bucket", _MAKE),
    ("status(not_found", "there is no such bucket", _MAKE),
    ("access_denied", "no permission", f"allow these keys to read, list and write there; {_KEYS}"),
    ("status 403", "no permission", f"allow these keys to read, list and write there; {_KEYS}"),
    ("invalid_access_key_id", "its keys are refused", _KEYS),
    ("signature_does_not_match", "its keys are refused", _KEYS),
    ("access token", "no keys were found, or they are refused", _KEYS),
    ("credential", "no keys were found, or they are refused", _KEYS),
    ("expired", "its keys are out of date", "fetch new ones and run again: what is sealed is kept in the store"),
    ("network_connection", "nobody answers", _NETWORK),
    ("could not connect", "nobody answers", _NETWORK),
)
"""What errors mean, by words in what Arrow says of them."""
_SAID = "Artifacts of caiflow: files under their sha256, and a record for each artifact, written last.\n"


def bucket_here() -> Bucket | None:
    """Return the bucket that $CAIFLOW_ARTIFACTS names; None where it is unset. Asks nobody."""
    address = os.environ.get(VARIABLE)
    return Bucket(address) if address else None


class Bucket:
    """The artifacts under an address that `pyarrow.fs` knows: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `file:///FOLDER`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.stopped: Callable[[], bool] = lambda: False
        """Sending and fetching stop within a few megabytes once this says so."""
        self.told: Callable[[str], None] = _silent
        """Is told what is fetched."""
        self._asked: set[str] = set()
        self._damaged: set[str] = set()
        """Digests of what is here but couldn't be used: what is sent takes their place."""

    def __str__(self) -> str:
        """Return the address without its options."""
        return self._address.partition("?")[0]

    def check(self) -> None:
        """Write the small file that says what lies here: an artifact's way there is known to be open before it is made.

        Raises:
            StoreError: no such bucket, no permission, or nobody answers.
        """
        self._write("README.txt", _SAID.encode())

    def has(self, artifact: Artifact) -> bool:
        """Return whether an artifact counts as kept here: it has a record, whatever that says of its content."""
        return artifact.digest not in self._damaged and self._size(_record_key(artifact.digest)) is not None

    def send(self, artifact: Artifact) -> None:
        """Keep an artifact here; files that are here already aren't sent again, and its record comes last.

        Raises:
            StoreError: it can't be written.
            KeyboardInterrupt: stopped.
        """
        for name, sha256 in artifact.files.items():
            file = artifact.path / name
            if sha256 in self._damaged or self._size(_file_key(sha256)) != file.stat().st_size:
                self._upload(file, _file_key(sha256))
                self._damaged.discard(sha256)
        self._write(_record_key(artifact.digest), (artifact.path / META).read_bytes())
        self._damaged.discard(artifact.digest)

    def fetch(self, digest: str, store: Store) -> Artifact | None:
        """Bring an artifact into a store; None where there is none here. What isn't here is asked for once.

        Raises:
            DamagedError: what is here isn't what was sent, so that it has to be made anew.
            StoreError: it can't be read, or the store not written.
            KeyboardInterrupt: stopped.
        """
        if digest in self._asked:
            return None
        self._asked.add(digest)
        place = f"{self}/{_record_key(digest)}"
        record = b"".join(self._chunks(_record_key(digest)))
        if not record:
            return None
        self._damaged.add(digest)
        kept = parse_record(record, Path(place))
        if not _plain(kept, digest):
            raise DamagedError(f"{place}: not this artifact's record", "run again, which makes it anew")
        self._damaged.update(kept.files.values())
        staged = store.stage(digest)
        try:
            self._bring(kept, staged)
            artifact = store.seal(digest, staged, kept.meta, files=kept.files)
            self._damaged.difference_update(kept.files.values(), [digest])
            return artifact
        except DamagedError as error:
            raise DamagedError(f"{place}: {error.message}", error.hint) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _bring(self, kept: Artifact, staged: Path) -> None:
        size = sum(each.size for each in kept.stamps.values())
        self.told(f"{kept.meta.get('op', kept.kind)} {kept.digest[:12]} ({size / 1e6:,.1f} MB) comes from {self}")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self._download(_file_key(kept.files[name]), staged / name), kept.files))

    def _download(self, key: str, target: Path) -> None:
        with storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                for chunk in self._chunks(key):
                    file.write(chunk)

    def _chunks(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of a file; none of one that isn't here, which the hashes will tell."""
        try:
            with self._asking():
                source = self._files[0].open_input_stream(self._path(key))
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return
            raise
        with source:
            while chunk := self._chunk(source):
                yield chunk

    def _chunk(self, source: Any) -> bytes:
        if self.stopped():
            raise KeyboardInterrupt
        with self._asking():
            chunk: bytes = source.read(_CHUNK)
            return chunk

    def _upload(self, file: Path, key: str) -> None:
        with open(file, "rb") as source, self._opened(key) as target:
            while chunk := self._chunk(source):
                target.write(chunk)

    def _write(self, key: str, content: bytes) -> None:
        with self._opened(key) as target:
            target.write(content)

    def _size(self, key: str) -> int | None:
        """Return the bytes of what lies under a key; None where nothing does."""
        with self._asking():
            found = self._files[0].get_file_info(self._path(key))
        return int(found.size) if found.is_file else None

    @contextmanager
    def _opened(self, key: str) -> Iterator[Any]:
        files, path = self._files[0], self._path(key)
        with self._asking():
            if files.type_name == "local":  # elsewhere a key needs no folder
                files.create_dir(path.rpartition("/")[0])
            with files.open_output_stream(path) as target:
                yield target

    def _path(self, key: str) -> str:
        return f"{self._files[1]}/{key}"

    @cached_property
    def _files(self) -> tuple[FileSystem, str]:
        """The file system of Arrow and the address's path in it."""
        parts = urlsplit(self._address)
        if parts.password is not None or parts.username not in (None, "anonymous"):
            raise StoreError(f"{VARIABLE}: keys don't belong into the address", _KEYS)
        from pyarrow.fs import FileSystem

        address = self._address
        if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
            address += f"{'&' if parts.query else '?'}retry_limit_seconds={_RETRY_S}"  # Arrow's own is 15 minutes
        with self._asking():
            files, path = FileSystem.from_uri(address)
        return files, path.rstrip("/")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn errors of the file system into StoreError with what to do."""
        try:
            yield
        except (OSError, ValueError, NotImplementedError) as error:  # Arrow's own come from these
            told = " ".join(str(error).split())
            what, hint = next(((what, hint) for mark, what, hint in _WORDS if mark in told.lower()), ("can't be used", _USUAL))
            raise StoreError(f"{VARIABLE}: {self}: {what}, got {told[:_SHOWN]}", hint) from error


def _silent(_text: str) -> None:
    """Tell nobody."""


def _file_key(sha256: str) -> str:
    return f"files/{sha256[:2]}/{sha256}"


def _record_key(digest: str) -> str:
    return f"artifacts/{digest[:2]}/{digest}.json"


def _plain(kept: Artifact, digest: str) -> bool:
    """Return whether a record is the one asked for, and leads nowhere else: whoever writes to a bucket may write anything."""
    names = [PurePosixPath(name) for name in kept.files]
    inside = all(name.parts and not name.is_absolute() and ".." not in name.parts for name in names)
    return kept.digest == digest and inside and all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in kept.files.values())
