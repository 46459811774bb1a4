"""JSON of plain records by orjson, wherever it gives the very bytes and values that Python's own module does.

Owns what "plain" is. Whatever else there is, halves of characters, numbers beyond 64 bits or written with exponents, deep nests
and what is no JSON at all, is left to the caller, who reads it with care and says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

import orjson

_LEAVES = frozenset((str, int, bool, NoneType))
_DEEPEST = 64


def quick_record(raw: bytes) -> dict[str, Any] | None:
    """Return the object that a line of JSON is; None where it may be another than `json.loads` gives, or none."""
    try:
        data = orjson.loads(raw)
    except ValueError:
        return None
    return data if type(data) is dict and are_plain(data.values()) else None


def quick_json(record: Mapping[str, Any]) -> bytes | None:
    """Return the compact JSON with sorted names; None where it may be other bytes than Python's own module writes."""
    return quick_texts(record) if type(record) is dict and are_plain(record.values()) else None


def quick_texts(record: Mapping[str, Any]) -> bytes | None:
    """Return the same of a record that is known to be plain."""
    try:
        return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # half of a character, a name that isn't text, a number of more than 64 bits
        return None


def are_plain(values: Iterable[Any], depth: int = 0) -> bool:
    """Return whether values are read and written alike by both: of JSON's kinds, numbers of usual sizes, not nested deep."""
    for value in values:
        kind = type(value)
        if kind in _LEAVES:
            continue
        if kind is float:
            if value and not 1e-4 <= abs(value) < 1e15:  # others are written with an exponent, or were whole numbers
                return False
        elif depth == _DEEPEST or not (
            (kind is dict and are_plain(value.values(), depth + 1)) or (kind is list and are_plain(value, depth + 1))
        ):
            return False
    return True
