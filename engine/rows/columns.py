"""What a row is made of: the types of columns, and the columns that a step's rows have. Knows no files and no operator."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")
Row = dict[str, Any]
ColumnType = Literal["text", "texts", "number", "numbers", "integer", "flag", "messages", "conversations", "json"]
ANSWERS = ("revision", "response", "chosen")
"""The columns an answer may be in."""
NO_ANSWERS = "have `generate` answer, `filter` such rows out before, or take other rows"
"""What to do about rows in which there is nothing to learn."""


Gap = Literal["some", "all"]


class Turns(NamedTuple):
    """In how many of `rows` rows a column's conversations have a system turn, an assistant's turn before the last, a tool's.

    None where that isn't known.
    """

    rows: int
    system: int | None
    earlier: int | None
    tools: int | None

    def sifted(self) -> Turns:
        """Return what is known of some of these rows: only what all have, or none."""
        found = (count if count in (0, self.rows) else None for count in self[1:])
        return Turns(self.rows, *found)

    def __add__(self, other: Turns) -> Turns:  # type: ignore[override]
        pairs = zip(self, other, strict=True)
        return Turns(*(None if left is None or right is None else left + right for left, right in pairs))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns a step's rows have. `open` means that more may exist than are known here (a hub data set, say)."""

    types: Mapping[str, ColumnType | None] = field(default_factory=dict)
    open: bool = False
    gaps: Mapping[str, Gap] = field(default_factory=dict)
    """The columns that are known to have nothing in some rows, or in all."""
    turns: Mapping[str, Turns] = field(default_factory=dict)
    """What is known of the conversations in a column."""
    outdone: frozenset[str] = frozenset()
    """The columns of answers beside which `messages` ends with another answer, which was named for it."""

    def __contains__(self, name: str) -> bool:
        return self.open or name in self.types

    def without(self, names: Collection[str]) -> Columns:
        """Return these columns but for those of the given names."""
        turns, outdone = _but(self.turns, names), self.outdone - {*names}
        return Columns(_but(self.types, names), self.open, _but(self.gaps, names), turns, outdone)

    def plus(self, types: Mapping[str, ColumnType | None], turns: Mapping[str, Turns] | None = None) -> Columns:
        """Return these columns and `types`, which replace columns of the same name; `turns` tells of those."""
        known = {**_but(self.turns, types), **(turns or {})}
        outdone = frozenset() if "messages" in types else self.outdone - {*types}
        return Columns({**self.types, **types}, self.open, _but(self.gaps, types), known, outdone)

    def sifted(self) -> Columns:
        """Return the columns of some of these rows."""
        gaps = {name: gap for name, gap in self.gaps.items() if gap == "all"}
        turns = {name: found.sifted() for name, found in self.turns.items()}
        return Columns(self.types, self.open, gaps, turns, self.outdone)

    def nothing_in(self, options: Collection[str]) -> str | None:
        """Return the column of `options` that is known to have nothing in rows where no other one has; None where none is."""
        there = [name for name in options if name in self.types]
        empty = [name for name in there if name in self.gaps]
        certain = not self.open and empty == there and (len(there) == 1 or all(self.gaps[name] == "all" for name in there))
        return next(iter(empty), None) if certain else None


def _but(items: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    return {name: value for name, value in items.items() if name not in names}


def answer_column(columns: Container[str]) -> str | None:
    """Return the column an answer is in where none is named: the first of ANSWERS that is among these, None without any."""
    return next((name for name in ANSWERS if name in columns), None)
