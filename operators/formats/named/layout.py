"""How a format is declared: what it recognises, which records make a row together, and how they are read.

Never knows a format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from caiflow.operators.formats.dialogue import Turns
from caiflow.operators.formats.named.fields import Fields, Record
from caiflow.operators.formats.opening import Line

Take = Literal["best", "all"]
See = Callable[[Line], Record]
"""Gives the record of a line with its fields' names as the format expects them; an empty one of a broken line."""
Group = Sequence[Line]


def one_by_one(lines: Iterator[Line], _see: See) -> Iterator[Group]:
    """Yield each line by itself."""
    return ((line,) for line in lines)


def in_twos(lines: Iterator[Line], _see: See) -> Iterator[Group]:
    """Yield the lines two by two; the last one may be alone."""
    return iter(lambda: tuple(islice(lines, 2)), ())


def as_they_are(records: Sequence[Record], _take: Take) -> Sequence[Record]:
    """Return the records of a group as they are."""
    return records


def two_texts(records: Sequence[Record], _take: Take) -> Sequence[Record]:
    """Return the one record of two that have a `text` each: the better one first."""
    return [dict(zip(("chosen", "rejected"), (record.get("text") for record in records), strict=False))]


class Format(NamedTuple):
    """One format: `fits` recognises a record, `parse` gives its columns, `takes` are the fields that this uses up.

    `gather` yields the lines whose records belong together, and `shape` makes of those the records that are rows.
    """

    name: str
    describe: str
    takes: frozenset[str]
    fits: Callable[[Record], bool]
    parse: Callable[[Record, Turns], Fields]
    gather: Callable[[Iterator[Line], See], Iterator[Group]] = one_by_one
    shape: Callable[[Sequence[Record], Take], Sequence[Record]] = as_they_are
