"""Which columns the rows of a source have, block by block, and their tables. Never reads records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.operators.formats.shapes import CANONICAL, MESSAGES, Shape, arrow_type, fit, merge, shape_of, whole

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
_EXACT: Mapping[type, Shape] = {str: "text", bool: "flag", float: "number"}
"""Kinds of values of which Arrow gives each back as it was."""

_EXACT_BELOW = 2**53
"""A 64-bit float has every whole number up to this one."""


class BadRow(NamedTuple):
    """A record that can't be a row: its file and line, why, and its text as far as it is known.

    `parameter` leads to the parameter at fault (`rename`, `uid`) where it isn't the record or its format.
    """

    place: str
    reason: str
    text: str
    parameter: tuple[str, ...] = ()


class Conversations(NamedTuple):
    """The turns of several conversations, and where each begins and ends among these, None in place of one that isn't there."""

    roles: Sequence[str | None]
    contents: Sequence[str | None]
    bounds: Sequence[int | None]

    def without_one(self, place: int) -> Conversations:
        """Return these without one; all of these must be there."""
        start, end = self.bounds[place] or 0, self.bounds[place + 1] or 0
        bounds = [*self.bounds[:place], *((bound or 0) - (end - start) for bound in self.bounds[place + 1 :])]
        return Conversations([*self.roles[:start], *self.roles[end:]], [*self.contents[:start], *self.contents[end:]], bounds)

    def with_one(self, place: int, turns: Sequence[Row]) -> Conversations:
        """Return these with one more; all of these must be there."""
        at = self.bounds[place] or 0
        ends = [(end or 0) + len(turns) for end in self.bounds[place:]]
        roles, contents = [turn["role"] for turn in turns], [turn["content"] for turn in turns]
        return Conversations(
            [*self.roles[:at], *roles, *self.roles[at:]],
            [*self.contents[:at], *contents, *self.contents[at:]],
            [*self.bounds[: place + 1], *ends],
        )

    def array(self) -> pa.Array:
        """Return them as Arrow has them."""
        import pyarrow as pa

        texts = [pa.array(texts, pa.large_string()) for texts in (self.roles, self.contents)]
        turns = pa.StructArray.from_arrays(texts, ["role", "content"])
        return pa.LargeListArray.from_arrays(pa.array(self.bounds, pa.int64()), turns)


class ByColumn(NamedTuple):
    """Rows as the values of each column, None where a row has nothing; and the bad ones, each after so many of the rows."""

    num_rows: int
    columns: Mapping[str, list[Any] | Conversations]
    bad: Sequence[tuple[int, BadRow]] = ()

    def with_one(self, place: int, row: Row | BadRow) -> ByColumn:
        """Return these with one more at a place after which no bad one is; it has each column of conversations."""
        if isinstance(row, BadRow):
            return self._replace(bad=[*self.bad, (place, row)])
        columns: dict[str, list[Any] | Conversations] = {}
        for name in dict.fromkeys((*self.columns, *row)):
            had = self.columns.get(name, [None] * self.num_rows)
            one = row.get(name)
            columns[name] = [*had[:place], one, *had[place:]] if isinstance(had, list) else had.with_one(place, one or ())
        return ByColumn(self.num_rows + 1, columns, self.bad)


def joined(parts: Sequence[ByColumn]) -> ByColumn:
    """Return rows, one part after the other."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    columns = {name: _joined([part.columns.get(name, [None] * part.num_rows) for part in parts]) for name in names}
    starts = accumulate((part.num_rows for part in parts), initial=0)
    bad = [(start + place, row) for start, part in zip(starts, parts, strict=False) for place, row in part.bad]
    return ByColumn(sum(part.num_rows for part in parts), columns, bad)


def _joined(parts: Sequence[list[Any] | Conversations]) -> list[Any] | Conversations:
    lists = [part for part in parts if isinstance(part, list)]
    if len(lists) == len(parts):
        return [*chain.from_iterable(lists)]
    given = [_conversations(part) if isinstance(part, list) else part for part in parts]
    starts = accumulate((len(part.roles) for part in given), initial=0)
    bounds = (start + (end or 0) for start, part in zip(starts, given, strict=False) for end in part.bounds[1:])
    roles, contents = (chain.from_iterable(texts) for texts in ((p.roles for p in given), (p.contents for p in given)))
    return Conversations([*roles], [*contents], [0, *bounds])


def by_column(found: Sequence[Row | BadRow]) -> ByColumn:
    """Return rows by column."""
    rows: list[Row] = []
    bad: list[tuple[int, BadRow]] = []
    for row in found:
        if isinstance(row, BadRow):
            bad.append((len(rows), row))
        else:
            rows.append(row)
    names = dict.fromkeys(chain.from_iterable(rows))
    return ByColumn(len(rows), {name: [row.get(name) for row in rows] for name in names}, bad)


class Survey:
    """The columns of the rows seen so far and the shape of each, in the order of their first appearance."""

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}

    def learn(self, rows: ByColumn) -> None:
        """Take further rows into account."""
        for name, values in rows.columns.items():
            if name in CANONICAL:
                self.shapes[name] = CANONICAL[name]
            elif (shape := _one_shape(values)) is not None:
                self.shapes[name] = merge(self.shapes.get(name, "null"), shape)
            else:
                self._merge(name, values)

    def see(self, rows: ByColumn) -> Block:
        """Take further rows into account; return them without the bad ones."""
        self.learn(rows)
        return Block(rows.num_rows, {name: _kept(name, values) for name, values in rows.columns.items()})

    def _merge(self, name: str, values: Sequence[Any]) -> None:
        known = self.shapes.get(name, "null")
        for value in values:
            if known == "json":
                break
            known = known if value is None else merge(known, shape_of(value))
        self.shapes[name] = known

    def table(self, block: Block) -> pa.Table:
        """Return rows as an Arrow table with the surveyed columns; absent values are null."""
        import pyarrow as pa

        return pa.table({name: block.fitted(name, shape) for name, shape in self.shapes.items()})


class Block:
    """Rows by column; what has a column that none of them has isn't known here."""

    def __init__(self, rows: int, columns: Mapping[str, pa.Array | list[Any]]) -> None:
        self.num_rows = rows
        self._columns = columns

    def fitted(self, name: str, shape: Shape) -> pa.Array:
        """Return a column's values under their shape, null where it isn't there."""
        import pyarrow as pa

        column = self._columns.get(name)
        if column is None:
            return pa.nulls(self.num_rows, arrow_type(shape))
        if not isinstance(column, list):
            if shape == MESSAGES or (shape != "json" and column.type == arrow_type(shape)):
                return column
            column = column.to_pylist()
        return _array([fit(value, shape) for value in column], shape)

    def uids(self) -> list[str]:
        """Return the rows' uids."""
        found: list[str] = self.fitted("uid", "text").to_pylist()
        return found

    def taken(self, places: Sequence[int]) -> Block:
        """Return some of the rows."""
        import pyarrow as pa

        at = pa.array(places, pa.int64())
        some = {
            name: [had[place] for place in places] if isinstance(had, list) else had.take(at)
            for name, had in self._columns.items()
        }
        return Block(len(places), some)


def _one_shape(values: Sequence[Any]) -> Shape | None:
    """Return the shape of values of one plain kind, beside nulls; None of others."""
    kinds = set(map(type, values))
    kinds.discard(NoneType)
    if not kinds:
        return "null"
    if kinds == {int}:
        given = [value for value in values if value is not None]
        least, most = min(given), max(given)
        if least >= -_EXACT_BELOW and most <= _EXACT_BELOW:
            return "integer"
        return whole(*given) if least >= -(2**63) and most < 2**63 else None
    return _EXACT.get(*kinds) if len(kinds) == 1 else None


def _kept(name: str, values: list[Any] | Conversations) -> pa.Array | list[Any]:
    """Return values by Arrow, where nothing of them is lost by that."""
    if isinstance(values, Conversations):
        return values.array()
    if CANONICAL.get(name) == MESSAGES:
        return _conversations(values).array()
    shape = _one_shape(values)
    return values if shape is None or shape == "null" else _array(values, shape)


def _array(values: Sequence[Any], shape: Shape) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, arrow_type(shape))


def _conversations(values: Sequence[Any]) -> Conversations:
    turns = [*chain.from_iterable(value for value in values if value is not None)]
    ends = accumulate((0 if value is None else len(value) for value in values), initial=0)
    bounds = [None if value is None else end for value, end in zip(chain(values, [()]), ends, strict=True)]
    return Conversations([turn.get("role") for turn in turns], [turn.get("content") for turn in turns], bounds)
