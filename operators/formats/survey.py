"""Which columns the rows of a source have, seen one by one, and their table. Never reads records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from caiflow.operators.formats.shapes import CANONICAL, MESSAGES, Shape, arrow_type, fit, merge, shape_of

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


class Survey:
    """The columns of the rows seen so far and the shape of each, in the order of their first appearance."""

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}

    def see(self, row: Row) -> None:
        """Take one more row into account."""
        for name, value in row.items():
            known = self.shapes.get(name)
            if name in CANONICAL:
                self.shapes[name] = CANONICAL[name]
            elif known != "json" and not (value is None and known is not None):
                shape = shape_of(value)
                self.shapes[name] = shape if known is None else merge(known, shape)

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """Return rows as an Arrow table with the surveyed columns; absent values are null."""
        import pyarrow as pa

        columns = {name: (_values(name, rows, shape), shape) for name, shape in self.shapes.items()}
        return pa.table({name: pa.array(values, arrow_type(shape)) for name, (values, shape) in columns.items()})


def _values(name: str, rows: Sequence[Row], shape: Shape) -> list[Any]:
    """Return a column's values as Arrow takes them; conversations that a format made are so already."""
    if name in CANONICAL and shape == MESSAGES:
        return [row.get(name) for row in rows]
    return [fit(row.get(name), shape) for row in rows]
