"""Records as JSON: the text that their uids follow from, and how messages show them. Never reads any."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.engine.identity import quick_json
from caiflow.operators.formats.dialogue import half_character


def _written(value: Any) -> str:
    """Return the text of a value that JSON doesn't know, a date or the like.

    Raises:
        ValueError: it has bytes, which no text can stand for.
    """
    if isinstance(value, bytes):
        raise ValueError("it has bytes that aren't text (an image?)")
    return str(value)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=_written).encode


def records_as_json(records: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Return each record's JSON, which its uid follows from.

    Raises:
        ValueError: a field has bytes, or half of a character; it is named.
    """
    quick = [text for text in map(quick_json, records) if text is not None]
    if len(quick) == len(records):
        return quick
    texts = [_as_json(record) for record in records]
    for record, text in zip(records, texts, strict=True):
        if half_character(text) is not None:
            raise ValueError(_halved(record))
    return [text.encode() for text in texts]


def _as_json(record: Mapping[str, Any]) -> str:
    """Return the record's JSON as Python's own module writes it.

    Raises:
        ValueError: a field has bytes; it is named.
    """
    try:
        return _encode(record)
    except ValueError as error:
        for name, value in record.items():
            try:
                _encode(value)
            except ValueError:
                raise WrongValue(f"`{name}`: {error}", "make it text, or leave the column out of the file") from error
        raise


def shown(record: object) -> str:
    """Return a record as a message shows it."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)


def _halved(record: Mapping[str, Any]) -> str:
    """Return the reason why a record is bad that has half of a character."""
    halves = ((name, half_character(_encode([name, value]))) for name, value in record.items())
    name, half = next((name, half) for name, half in halves if half is not None)
    return f"`{writable(name)}` has {half}, which is half of a character"


def writable(text: str) -> str:
    """Return a text that any file can have, halves of characters written out."""
    return text.encode("utf-8", "backslashreplace").decode()
