"""What a row is made of: the types of columns, and the columns that a step's rows have. Knows no files and no operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
ColumnType = Literal["text", "texts", "number", "numbers", "integer", "flag", "messages", "conversations", "json"]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns a step's rows have. `open` means that more may exist than are known here (a hub data set, say)."""

    types: Mapping[str, ColumnType | None] = field(default_factory=dict)
    open: bool = False

    def __contains__(self, name: str) -> bool:
        return self.open or name in self.types

    def without(self, names: Collection[str]) -> Columns:
        """Return these columns but for those of the given names."""
        return Columns({name: kind for name, kind in self.types.items() if name not in names}, self.open)

    def plus(self, types: Mapping[str, ColumnType | None]) -> Columns:
        """Return these columns and `types`, which replace columns of the same name."""
        return Columns({**self.types, **types}, self.open)
