"""What makes two pieces of work the same: canonical JSON, digests and row keys.

Owns the one way in which values become digests; those of files are in `store/file_digests.py`. A value that the next process
may write otherwise is refused: its digest would never be found again. Never decides what belongs to an identity.

orjson reads and writes what is plain, wherever it gives the very values and bytes that Python's own module does. Whatever else
there is, halves of characters, numbers beyond 64 bits or written with exponents, deep nests, is left to that one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import chain, compress
from types import NoneType
from typing import Any
from uuid import UUID

import orjson
from pydantic import BaseModel

_EXACT = 2.0**53  # whole floats below this are written as integers, so that 1 and 1.0 are the same


def json_writer(
    *, sort_keys: bool = False, allow_nan: bool = True, default: Callable[[Any], Any] | None = None
) -> Callable[[Any], str]:
    """Return what writes values as JSON without spaces: as `json.JSONEncoder.encode`, whose encoder is made for each."""
    slow = json.JSONEncoder(
        ensure_ascii=False, check_circular=False, separators=(",", ":"),
        sort_keys=sort_keys, allow_nan=allow_nan, default=default,
    )  # fmt: skip
    make, text = getattr(json.encoder, "c_make_encoder", None), json.encoder.encode_basestring
    if make is None:
        return slow.encode
    encode = make(None, slow.default, text, None, ":", ",", sort_keys, False, allow_nan)
    return lambda value: "".join(encode(value, 0))


_encode = json_writer(sort_keys=True, allow_nan=False)
_LEAVES = frozenset((str, int, bool, NoneType))
_NESTS = frozenset((dict, list, tuple))
_DEEPEST = 64
_MARK = int.from_bytes(os.urandom(7), "little")
_BETWEEN = f",{_MARK},".encode()

_ALWAYS_THE_SAME_TEXT = (date, time, timedelta, Decimal, UUID, bytes)
"""What tables hold beyond JSON's types."""


class NoIdentityError(TypeError):
    """A value without a form that is the same in every process."""


def canonical(value: Any) -> bytes:
    """Return the one JSON text of `value`: sorted keys, tuples as lists, whole floats as integers, models as their fields.

    Raises:
        NoIdentityError: a value JSON has no form for, a path included: paths never belong to an identity.
    """
    try:
        text = _encode(value)
    except (TypeError, ValueError):  # what JSON lacks: models, bytes, sets, infinities
        text = _encode(plain(value))
    else:
        if ".0" in text or "e+" in text:  # there may be whole floats; all else is right already, ten times faster
            text = _encode(plain(value))
    return text.encode("utf-8", "surrogatepass")


def compact(value: Any) -> bytes:
    """Return the JSON text of rows and calls, fast: sorted keys, numbers as they are, times and the like as their text.

    For keys on the hot path, where types come from a schema; `canonical` is for what people write.

    Raises:
        NoIdentityError: a value of another type.
    """
    if are_plain((value,)) and (quick := quick_texts(value)) is not None:
        return quick
    try:
        return _encode_row(value).encode("utf-8", "surrogatepass")
    except TypeError as error:
        raise _refusal(value, _encode_row, error) from None


def compact_all(values: Sequence[Any]) -> list[bytes]:
    """Return `compact` of each of these, faster."""
    if are_plain(values):
        try:
            return [orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for value in values]
        except TypeError:
            pass
    return [*map(compact, values)]


def _as_text(value: Any) -> str:
    if isinstance(value, _ALWAYS_THE_SAME_TEXT):
        return str(value)
    raise TypeError(_no_form(value))


_encode_row = json_writer(sort_keys=True, default=_as_text)


def quick_record(raw: bytes, exact: bool = True) -> dict[str, Any] | None:
    """Return the object that a line of JSON is; None where it may be another than `json.loads` gives, or none.

    Unless `exact`, numbers may be others.
    """
    try:
        data = orjson.loads(raw)
    except ValueError:
        return None
    return data if type(data) is dict and (not exact or are_plain(data.values())) else None


def quick_records(raws: Sequence[bytes], exact: bool = True) -> list[dict[str, Any]] | None:
    """Return the objects that lines of JSON are, read at once; None where one may be another than `quick_record` gives."""
    try:
        found = orjson.loads(b"".join((b"[", _BETWEEN.join(raws), b"]")))
    except ValueError:
        return None
    records: list[dict[str, Any]] = found[::2]
    # a mark that no file knows: what stands on one line isn't taken for what would only be whole with the next
    each_alone = len(records) == len(raws) and found[1::2] == [_MARK] * (len(raws) - 1)
    return records if each_alone and {*map(type, records)} == {dict} and (not exact or are_plain(records)) else None


def quick_json(record: Mapping[str, Any]) -> bytes | None:
    """Return the compact JSON with sorted names; None where it may be other bytes than Python's own module writes."""
    return quick_texts(record) if type(record) is dict and are_plain(record.values()) else None


def quick_texts(value: Any) -> bytes | None:
    """Return the same of a value that is known to be plain."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # half of a character, a name that isn't text, a number of more than 64 bits
        return None


def are_plain(values: Iterable[Any]) -> bool:
    """Return whether values are read and written alike by both: of JSON's kinds, numbers of usual sizes, not nested deep.

    Those of many rows are looked through at once, a depth at a time, which takes a tenth of what each alone does.
    """
    for _ in range(_DEEPEST + 1):
        given = [*values]
        kinds = {*map(type, given)} - _LEAVES
        if float in kinds:
            kinds.discard(float)
            if not all(not one or 1e-4 <= abs(one) < 1e15 for one in given if type(one) is float):
                return False  # it is written with an exponent, or was a whole number
        if not kinds:
            return True
        if not kinds <= _NESTS:
            return False
        nested = compress(given, map(_NESTS.__contains__, map(type, given)))
        values = chain.from_iterable(one.values() if type(one) is dict else one for one in nested)
    return False


def digest(value: Any) -> str:
    """Return the sha256 of `canonical(value)`, 64 hex characters."""
    return hashlib.sha256(canonical(value)).hexdigest()


def key(*parts: bytes | str) -> bytes:
    """Return a ledger key, 16 bytes; where one part ends and the next begins counts."""
    return hashlib.blake2b(_framed(parts), digest_size=16).digest()


class KeyStart:
    """The parts with which many keys begin, taken in once: `KeyStart(a, b).key(c)` is `key(a, b, c)`."""

    __slots__ = ("_begun",)

    def __init__(self, *parts: bytes | str) -> None:
        self._begun = hashlib.blake2b(_framed(parts), digest_size=16)

    def keys(self, *columns: Sequence[bytes]) -> list[bytes]:
        """Return the keys that go on with a part of each column, one behind the other."""
        found = []
        for parts in zip(*columns, strict=True):
            begun = self._begun.copy()
            for part in parts:
                begun.update(len(part).to_bytes(8, "little"))
                begun.update(part)
            found.append(begun.digest())
        return found

    def key(self, *parts: bytes | str) -> bytes:
        """Return the key that goes on with `parts`."""
        begun = self._begun.copy()
        begun.update(_framed(parts))
        return begun.digest()


started = lru_cache(maxsize=256)(KeyStart)
"""The same, kept: `started(a, b).key(c)` for what begins alike in all rows of a step."""


def _framed(parts: Iterable[bytes | str]) -> bytes:
    framed: list[bytes] = []
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        framed += (len(encoded).to_bytes(8, "little"), encoded)
    return b"".join(framed)


def plain(value: Any, place: str = "") -> Any:
    """Return `value` as JSON's own types, models as their fields; what `canonical` writes.

    Raises:
        NoIdentityError: there is no such form; `place` says where the value stands.
    """
    try:
        return _plain(value)
    except TypeError as error:
        raise _refusal(value, _plain, error, place) from None


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
    if isinstance(value, str):
        return str.__str__(value)
    for base in (int, float):
        if isinstance(value, base):
            return _plain(base(value))
    if isinstance(value, Sequence) and not isinstance(value, os.PathLike):
        return [_plain(item) for item in value]
    raise TypeError(_no_form(value))


def _number(value: float) -> Any:
    if value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value if math.isfinite(value) else {"$float": repr(value)}


def _name(name: Any) -> str:
    if isinstance(name, str):
        return str.__str__(name)
    if name is None or isinstance(name, (bool, int, float)):
        return _encode(_plain(name))  # as JSON's own encoder does
    raise TypeError(f"a key must be text or a number, got {name!r}; rename it")


def _no_form(value: Any) -> str:
    return f"{type(value).__name__} has no form that is always the same, got {value!r}; give text, numbers, lists or mappings"


def _refusal(value: Any, write: Callable[[Any], Any], error: TypeError, place: str = "") -> NoIdentityError:
    """Return the error with the place where `write` fails, dotted."""
    where = ".".join(filter(None, (place, *_place(value, write))))
    return NoIdentityError(f"identity: {where}: {error}" if where else f"identity: {error}")


def _place(value: Any, write: Callable[[Any], Any]) -> Iterator[str]:
    inner: Any = ()
    if isinstance(value, (Mapping, BaseModel)):
        inner = dict(value).items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    for name, item in inner:
        try:
            write(item)
        except TypeError:
            yield str(name)
            yield from _place(item, write)
            return


def arms_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the copies of each step that a matrix has several of: `rl@*` with `rl@one`, `rl@two`."""
    found: dict[str, list[str]] = {}
    for name in names:
        base, at, _ = name.partition("@")
        if at:
            found.setdefault(f"{base}@*", []).append(name)
    return {name: arms for name, arms in found.items() if len(arms) > 1}
