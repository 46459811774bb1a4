"""What a row is made of: the types of columns, and the columns that a step's rows have. Knows no files and no operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
ColumnType = Literal["text", "texts", "number", "numbers", "integer", "flag", "messages", "conversations", "json"]


Gap = Literal["some", "all"]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns a step's rows have. `open` means that more may exist than are known here (a hub data set, say)."""

    types: Mapping[str, ColumnType | None] = field(default_factory=dict)
    open: bool = False
    gaps: Mapping[str, Gap] = field(default_factory=dict)
    """The columns that are known to have nothing in some rows, or in all."""

    def __contains__(self, name: str) -> bool:
        return self.open or name in self.types

    def without(self, names: Collection[str]) -> Columns:
        """Return these columns but for those of the given names."""
        gaps = {name: gap for name, gap in self.gaps.items() if name not in names}
        return Columns({name: kind for name, kind in self.types.items() if name not in names}, self.open, gaps)

    def plus(self, types: Mapping[str, ColumnType | None]) -> Columns:
        """Return these columns and `types`, which replace columns of the same name."""
        return Columns({**self.types, **types}, self.open, {name: gap for name, gap in self.gaps.items() if name not in types})

    def sifted(self) -> Columns:
        """Return the columns of some of these rows."""
        return Columns(self.types, self.open, {name: gap for name, gap in self.gaps.items() if gap == "all"})

    def nothing_in(self, options: Collection[str]) -> str | None:
        """Return the column of `options` that is known to have nothing in rows where no other one has; None where none is."""
        there = [name for name in options if name in self.types]
        empty = [name for name in there if name in self.gaps]
        certain = not self.open and empty == there and (len(there) == 1 or all(self.gaps[name] == "all" for name in there))
        return next(iter(empty), None) if certain else None
