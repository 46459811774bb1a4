"""A record's fields: reading one by its name, or saying what the record lacks or has in its place. Never knows a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.operators.formats.dialogue import is_turns, shorten

Record = Mapping[str, Any]
Fields = dict[str, Any]


def present(record: Record, *names: str) -> Any:
    """Return the first of these fields that has something.

    Raises:
        ValueError: none has.
    """
    for name in names:
        if record.get(name) is not None:
            return record[name]
    for name in names:
        if name in record:
            raise ValueError(f"`{name}` is null")
    raise WrongValue(f"no `{names[0]}`", f"it has {', '.join(f'`{name}`' for name in record) or 'nothing'}")


def said(record: Record, name: str) -> Any:
    """Return what a field that has to be there says: a text or a list, whose items are yet to be checked."""
    value = present(record, name)
    if not isinstance(value, (str, Sequence)):
        raise ValueError(f"`{name}` must be a text or a list of messages, got {shorten(value)}")
    return value


def reply(record: Record, name: str) -> Any:
    """Return an answer: a text, a message list, or the list of the one message that is given."""
    value = present(record, name)
    return [value] if isinstance(value, Mapping) and is_turns([value]) else said(record, name)


def text_or_none(record: Record, name: str) -> str | None:
    """Return a text, None where the field is absent or null."""
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{name}` must be text, got {type(value).__name__}")
    return value


def share_of(value: Any) -> float:
    """Return a share from 0 to 1."""
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0  # no number, so none in range
    if not 0 <= share <= 1:
        raise ValueError(f"`p_chosen` must be a number from 0 to 1, got {shorten(value)}")
    return share


def has(*names: str) -> Callable[[Record], bool]:
    """Return a test whether a record has something in each of these fields."""
    return lambda record: all(record.get(name) is not None for name in names)


def names(text: str) -> frozenset[str]:
    """Return the names in a text."""
    return frozenset(text.split())
