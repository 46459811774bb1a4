"""What makes two pieces of work the same: canonical JSON, digests, row keys, and the content digests of files.

Owns the one way in which values become digests, and the memory of file digests. Never decides what belongs to a step's
identity beyond its parameters, and never reads a spec.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypedDict, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

FORMAT = 1
"""Version of the key format; part of every digest that plan and run compare."""

_EXACT = 2.0**53  # whole floats below this are written as integers, so that 1 and 1.0 are the same
_RACY_NS = 2_000_000_000  # a file changed this recently may change again within the clock's grain: not remembered
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), sort_keys=True).encode


def canonical(value: Any) -> bytes:
    """Return the one JSON text of `value`: sorted keys, tuples as lists, whole floats as integers, models as their fields.

    Raises:
        TypeError: a value JSON has no form for, a path included: paths never belong to an identity.
    """
    return _encode(_plain(value)).encode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """Return the sha256 of `canonical(value)`, 64 hex characters."""
    return hashlib.sha256(canonical(value)).hexdigest()


def key(*parts: bytes | str) -> bytes:
    """Return a ledger key, 16 bytes; where one part ends and the next begins counts."""
    encoded = [part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts]
    framed = b"".join([len(part).to_bytes(8, "little") + part for part in encoded])
    return hashlib.blake2b(framed, digest_size=16).digest()


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return _number(value)
    if kind is dict:
        return {_name(name): _plain(item) for name, item in value.items()}
    if kind is list or kind is tuple:
        return [_plain(item) for item in value]
    return _plain_other(value)


def _plain_other(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(item) for name, item in dict(value).items()}
    if isinstance(value, Mapping):
        return {_name(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=_encode)
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": bytes(value).hex()}
    for base in (str, bool, int, float):
        if isinstance(value, base):
            return _plain(base(value))
    if isinstance(value, Sequence) and not isinstance(value, os.PathLike):
        return [_plain(item) for item in value]
    raise TypeError(f"identity: {type(value).__name__} has no canonical form, got {value!r}; give text, numbers, lists or mappings")


def _number(value: float) -> Any:
    if value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value if math.isfinite(value) else {"$float": repr(value)}


def _name(name: Any) -> str:
    if isinstance(name, str):
        return str(name)
    if isinstance(name, bool) or not isinstance(name, (int, float)):
        raise TypeError(f"identity: a key must be text or a number, got {name!r}; rename it")
    return f"${_number(float(name)) if isinstance(name, float) else name}"


# ---------------------------------------------------------------------------------------------------- parameters


def identity_params(params: BaseModel, contents: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the parameters that change the output, as plain values.

    Fields that only affect speed and fields that hold paths are left out. Names of steps and models are replaced by their
    content digests in `contents`, and left out where it has none. A mapping whose keys are such names becomes a list of
    [digest, value] pairs in the written order, since an operator may heed it.
    """
    plain = _fields(params, contents or {})
    return {name: _plain(value) for name, value in plain.items()}


class _Gone:
    """Marks a value that is left out."""


_GONE = _Gone()


def _fields(model: BaseModel, contents: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, info in type(model).model_fields.items():
        extra = info.json_schema_extra
        value = _value(getattr(model, name), info.annotation, extra if isinstance(extra, dict) else {}, contents)
        if value is not _GONE:
            found[name] = value
    return found


def _value(value: Any, annotation: Any, marks: Mapping[str, Any], contents: Mapping[str, str]) -> Any:
    """Return `value` without speed, paths and names; `marks` are those of the place it stands in."""
    if marks.get("x-speed") or (value is not None and marks.get("x-path") and isinstance(value, (str, os.PathLike))):
        return _GONE
    if marks.get("x-ref") and isinstance(value, str):
        return contents.get(value, _GONE)
    if isinstance(value, BaseModel):
        return _fields(value, contents)
    arms = list(_arms(annotation, marks))
    if isinstance(value, Mapping):
        return _mapping(value, arms, contents)
    if isinstance(value, (list, tuple)):
        return _list(value, arms, contents)
    for arm, arm_marks in arms:
        if arm is str and isinstance(value, str) and arm_marks is not marks and _telling(arm_marks):
            return _value(value, arm, arm_marks, contents)
    return value


def _mapping(value: Mapping[Any, Any], arms: list[tuple[Any, Mapping[str, Any]]], contents: Mapping[str, str]) -> Any:
    inner = _inner(arms, dict, Mapping) or (Any, Any)
    key_marks = next((marks for _, marks in _arms(inner[0], {}) if _telling(marks)), {})
    items = [(name, _value(item, inner[1], {}, contents)) for name, item in value.items()]
    if key_marks.get("x-ref"):
        return [[contents.get(name), None if item is _GONE else item] for name, item in items]
    return {name: item for name, item in items if item is not _GONE}


def _list(value: Sequence[Any], arms: list[tuple[Any, Mapping[str, Any]]], contents: Mapping[str, str]) -> list[Any]:
    inner = [arg for arg in _inner(arms, list, tuple, Sequence) if arg is not Ellipsis] or [Any]
    kinds = inner * len(value) if len(inner) == 1 else inner
    found = [_value(item, kind, {}, contents) for item, kind in zip(value, kinds, strict=False)]
    return [item for item in found if item is not _GONE]


def _arms(annotation: Any, marks: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield each alternative of `annotation` with the marks that hold there."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        extras = [note.json_schema_extra for note in notes if isinstance(note, FieldInfo)]
        merged = {**marks, **{name: mark for extra in extras if isinstance(extra, dict) for name, mark in extra.items()}}
        yield from _arms(inner, merged)
    elif get_origin(annotation) in (Union, UnionType):
        for arm in get_args(annotation):
            yield from _arms(arm, marks)
    elif get_origin(annotation) is not Literal:
        yield annotation, marks


def _inner(arms: Iterable[tuple[Any, Mapping[str, Any]]], *origins: Any) -> tuple[Any, ...]:
    import collections.abc as abc

    wanted = {*origins, *(getattr(abc, origin.__name__, origin) for origin in origins)}
    return next((get_args(arm) for arm, _ in arms if get_origin(arm) in wanted), ())


def _telling(marks: Mapping[str, Any]) -> bool:
    return any(marks.get(name) for name in ("x-ref", "x-path", "x-speed"))


# --------------------------------------------------------------------------------------------------------- files


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


def folder_files(folder: Path) -> list[str]:
    """Return the relative paths of a folder's files that aren't hidden, sorted, with `/`."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(folder)
        found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)
