"""Between rows as the operators see them and Arrow batches as they are stored.

Owns the one conversion; columns that no step wrote are taken over as they were, never through Python objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.rows.folder import arrow_type

if TYPE_CHECKING:
    import pyarrow as pa

    from caiflow.engine.operator import RowOperator
    from caiflow.engine.rows.columns import ColumnType, Row


class Changed(NamedTuple):
    """What the steps up to one have made of a source's columns: those they wrote, with their types, and those left out."""

    written: Mapping[str, ColumnType] = {}
    gone: frozenset[str] = frozenset()

    def by(self, operator: RowOperator[Any]) -> Changed:
        """Return the same after one more step."""
        own, outdated = operator.writes(), operator.outdates()
        before = {name: kind for name, kind in self.written.items() if name not in outdated}
        return Changed({**before, **own}, self.gone.union(outdated).difference(own))


def rows_to_batch(source: pa.RecordBatch, rows: Sequence[tuple[int, Row]], changed: Changed) -> pa.RecordBatch:
    """Return the rows as one batch: (place in `source`, whole row) each; what was written is taken from the rows.

    Raises:
        TypeError: an operator returned a value that its declared column type can't hold.
    """
    import pyarrow as pa

    taken = source.take(pa.array([place for place, _ in rows], pa.int64()))
    columns = {name: taken.column(name) for name in taken.schema.names if name not in changed.gone}
    types: dict[str, ColumnType] = {"uid": "text", **changed.written}
    for name, kind in types.items():
        columns[name] = _column(name, kind, [row.get(name) for _, row in rows])
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _column(name: str, kind: ColumnType, values: list[Any]) -> pa.Array:
    import pyarrow as pa

    if kind == "json":
        values = [None if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True) for value in values]
    try:
        return pa.array(values, arrow_type(kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypeError(f"column {name!r}: declared as {kind}, but a value doesn't fit; {error}") from error
