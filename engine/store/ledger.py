"""The ledger: results already paid for, by key, appended by many processes and never rewritten.

Owns one namespace: which files it has, which of them this process appends to, and when they are flushed. A record reaches
the kernel before `append` returns, so a killed process loses nothing; it reaches the disk with the next flush, about a
second later. Never decides what a key is made of.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from caiflow.engine.errors import StoreError
from caiflow.engine.identity import json_writer, quick_record, quick_records
from caiflow.engine.machine import allow_many_files, machine_tag
from caiflow.engine.store.claims import Claims
from caiflow.engine.store.disk import store_error, storing
from caiflow.engine.store.ledger_index import Index
from caiflow.engine.store.ledger_segment import ELSEWHERE_S, Segment, create, frame, payload_of

_FLUSH_S = 1.0
_FEW_KEYS = 16  # up to which looking each up alone is faster
_READ_AT_ONCE = 64  # payloads: as many as stay in the cache of a core meanwhile
_MANY = 32  # files of one namespace, of which a run may have ten
_encode = json_writer()


def ledger_name(op: str, model_identity: str) -> str:
    """Return the namespace of an operator's calls to a model, or of its rows where it asks none (an empty identity).

    Another name for the same calls would lose all results that were paid for.
    """
    return f"{op}-{model_identity[:16] or 'none'}"


class Ledger:
    """Records of one namespace: `key -> payload`, the last append wins.

    Reading needs no permission to write. A record cut off by a crash, or damaged since, counts as absent. `apart`
    (GROUP-NUMBER) is for one of a group whose keys differ: it has files of its own, and doesn't read those of the others. Keys
    that another of the group may have, too, are looked up and appended in `common`.
    """

    def __init__(self, home: Path, namespace: str, apart: str = "") -> None:
        if not re.fullmatch(r"[A-Za-z0-9._@-]{1,200}", namespace) or namespace.startswith("."):
            raise ValueError(f"ledger: a namespace is a plain file name, got {namespace!r}")
        self.path = home / namespace
        self._place = str(self.path)
        self.claims = Claims(self.path)
        """The keys whose results are being made."""
        self.changes = 0
        """Grows with each look or append that brought records: while it is the same, what was unknown is unknown still."""
        self._looked: list[int] = []
        self._common: Ledger | None = None
        self._own_end, self._group = (f".{apart}.seg", f".{apart.rpartition('-')[0]}-") if apart else (".seg", "")
        self._lock, self._opening = threading.RLock(), threading.Lock()
        self._segments: list[Segment] = []
        self._known: dict[str, int] = {}
        self._index = Index()
        self._own: Segment | None = None
        self._dirty = False
        self._failed: StoreError | None = None
        self._closed = threading.Event()
        self._flusher: threading.Thread | None = None
        self.refresh()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def common(self) -> Ledger:
        """The same records with those of the whole group; itself where it isn't apart. Opened when first asked for.

        That may take seconds, in which no other use of this one waits.
        """
        if not self._group:
            return self
        with self._opening:
            if self._common is None:
                self._common = Ledger(self.path.parent, self.path.name)
            return self._common

    @property
    def common_at_hand(self) -> bool:
        """Whether `common` is open."""
        return not self._group or self._common is not None

    @property
    def damaged(self) -> int:
        """The number of places in its files at which records were damaged; those count as absent."""
        return sum(segment.damaged for segment in self._segments)

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
        data = payload_of(record, key)
        return None if data is None else _read(data, True)

    def get_many(self, keys: Sequence[bytes], *, exact: bool = True) -> list[dict[str, Any] | None]:
        """Return what `get` does for each of many keys, reading what lies close together at once.

        Unless `exact`, numbers beyond 64 bits may be others; whoever needs no such value is spared the look for them.

        Raises:
            StoreError: a file can't be read.
        """
        if len(keys) < _FEW_KEYS:
            return [self.get(key) for key in keys]
        payloads: list[dict[str, Any] | None] = [None] * len(keys)
        whole = self._whole(keys)
        while some := [*islice(whole, _READ_AT_ONCE)]:
            texts = [text for _, text in some]
            found = quick_records(texts, exact) or [_read(text, exact) for text in texts]
            for (at, _), payload in zip(some, found, strict=True):
                payloads[at] = payload
        return payloads

    def _whole(self, keys: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield the payloads of those that are there and whole, each with its key's place, as they stand in files."""
        with self._lock:
            found, segments = self._index.find_many(keys), [*self._segments]
        for number, places in groupby(found, itemgetter(0)):
            segment, there = segments[number], [*places]
            try:
                for (_, _, at), record in zip(there, segment.read_many([offset for _, offset, _ in there]), strict=True):
                    if (text := payload_of(record, keys[at])) is not None:
                        yield at, text
            except OSError as error:
                raise store_error(segment.path, error) from error

    def append(self, key: bytes, payload: dict[str, Any]) -> None:
        """Keep `payload` (JSON) under `key` (16 bytes).

        Raises:
            StoreError: no space or no permission, now or at a flush since the last append.
        """
        data = _encode(payload).encode("utf-8", "surrogatepass")
        record = frame(key, data)
        with self._lock:
            if self._failed or self._own is None:
                self._begin()
            assert self._own is not None
            try:  # `storing` costs as much as the write itself
                offset = self._own.write(record)
            except OSError as error:
                raise store_error(self.path, error) from error
            self._index.add(key, self._own.number, offset)
            self.changes += 1
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
                of_another = self._group and self._group in name and not name.endswith(self._own_end)
                if name.endswith(".seg") and not of_another:
                    self._read(name)

    def catch_up(self) -> None:
        """Read what others have appended since the last look; where that is nothing it costs a stat for each file."""
        with self._lock:
            try:
                grew = self._others_grew()
            except OSError as error:
                raise store_error(self.path, error) from error
            if grew:
                self.refresh()

    def _others_grew(self) -> bool:
        try:
            seen = [os.stat(self._place).st_mtime_ns]
        except FileNotFoundError:
            return False
        for segment in self._segments:
            if segment is not self._own:
                seen.append(os.fstat(segment.descriptor).st_size)
        before, self._looked = self._looked, seen
        return seen != before

    def close(self) -> None:
        """Flush, and let other processes append to this one's file; reading and appending end here.

        Raises:
            StoreError: the disk refused, now or at a flush since the last append.
        """
        self._closed.set()
        if self._flusher:
            self._flusher.join()
            self._flusher = None
        try:
            self.flush()
            if self._failed:
                raise self._failed
        finally:
            with self._lock:
                if self._own is not None and self._own.large and self._own.whole():
                    self._remember(self._own)
                for segment in self._segments:
                    segment.close()
                self._own = None
                self.claims.close()
            with self._opening:
                if self._common is not None:
                    self._common.close()

    def _remember(self, own: Segment) -> None:
        """Keep beside a file where all of its records are: which file has the last one of a key isn't the same to all."""
        keys, offsets = self._index.of(own.number)
        if len(offsets) != own.records:
            keys, offsets = own.scan_whole()
        own.remember(keys, offsets)

    def _read(self, name: str) -> None:
        if name not in self._known:
            if len(self._segments) >= _MANY:  # hosts that came and went in a week have left one each
                allow_many_files()
            self._known[name] = len(self._segments)
            self._segments.append(Segment(self.path / name, self._known[name]))
        number = self._known[name]
        if self._segments[number] is not self._own:
            keys, offsets = self._segments[number].scan()
            if offsets:
                self._index.load(number, keys, offsets)
                self.changes += 1

    def _begin(self) -> None:
        """Take a file to append to: one that no process holds and that ends well, or a new one."""
        if self._closed.is_set():
            raise StoreError(f"{self.path}: the ledger is closed", "open it again")
        if self._failed:
            error, self._failed = self._failed, None
            raise error
        with storing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.refresh()
            self._own = next((segment for segment in self._segments if self._take(segment)), None) or self._create()
        self._flusher = threading.Thread(target=self._flush_often, name="ledger-flush", daemon=True)
        self._flusher.start()

    def _take(self, segment: Segment) -> bool:
        if not segment.path.name.endswith(self._own_end) or not _may_take(segment.path) or not segment.hold():
            return False
        self._read(segment.path.name)  # what its last holder wrote since our look
        if segment.whole():
            return True
        segment.release()
        return False

    def _create(self) -> Segment:
        while True:  # another process may take the new file first
            name = f"{int(time.time()):010d}-{machine_tag()}-{uuid.uuid4().hex[:12]}{self._own_end}"
            create(self.path / name)
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


def _read(data: bytes, exact: bool) -> dict[str, Any]:
    quick = quick_record(data, exact)
    if quick is None:
        quick = json.loads(data.decode("utf-8", "surrogatepass"))
    return quick


def _may_take(segment: Path) -> bool:
    """Return whether no other machine can be writing a file: there are shared file systems whose locks it wouldn't see."""
    return f"-{machine_tag()}-" in segment.name or segment.stat().st_mtime < time.time() - ELSEWHERE_S
