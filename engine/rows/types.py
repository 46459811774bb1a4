"""The Arrow types of rows: what a declared column is, and the one form that all types of the same values take.

Never touches a file. The wide form (64-bit numbers and offsets, no dictionaries) is what is written; readers see the plain one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import WrongValue
from caiflow.engine.rows.columns import ColumnType, Row

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_type(column: ColumnType) -> pa.DataType:
    """Return the Arrow type of a declared column; `json` is JSON text."""
    import pyarrow as pa

    messages = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    types: dict[ColumnType, pa.DataType] = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "number": pa.float64(),
        "numbers": pa.list_(pa.float64()),
        "integer": pa.int64(),
        "flag": pa.bool_(),
        "messages": messages,
        "conversations": pa.list_(messages),
        "json": pa.string(),
    }
    return types[column]


_NAMES: tuple[ColumnType, ...] = ("text", "texts", "number", "numbers", "integer", "flag", "messages", "conversations")


def column_type(arrow: pa.DataType) -> ColumnType | None:
    """Return the declared type that an Arrow type amounts to, or None where there is none (a struct, say)."""
    return next((name for name in _NAMES if _wide(arrow_type(name)).equals(_wide(arrow))), None)


def from_rows(rows: Sequence[Row], columns: Mapping[str, ColumnType | None]) -> pa.Table:
    """Return rows as a table of the columns that any of them has, the declared ones first.

    Raises:
        ValueError: a column's values aren't of its type, or not of one type.
    """
    import pyarrow as pa

    names = [name for name in columns if any(name in row for row in rows)]
    names += [name for name in dict.fromkeys(name for row in rows for name in row) if name not in columns]
    arrays = []
    for name in names:
        kind = columns.get(name)
        values = [row.get(name) for row in rows]
        if kind == "json":
            values = [value if value is None or isinstance(value, str) else _json(value) for value in values]
        try:
            arrays.append(pa.array(values, arrow_type(kind) if kind else None))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"column {name}: a value isn't {kind or 'of one type with the others'}, got {error}") from error
    return pa.table(arrays, names=names)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _wide(kind: pa.DataType) -> pa.DataType:
    """Return the one Arrow type that stands for all with the same values: 64-bit numbers and offsets, no dictionaries."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.large_binary()
    if types.is_dictionary(kind):
        return _wide(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.large_list(pa.field("element", _wide(kind.value_type)))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _wide(field.type)) for field in kind])
    if types.is_integer(kind) and not types.is_uint64(kind):
        return pa.int64()
    return pa.float64() if types.is_floating(kind) else kind


def widen(table: pa.Table) -> pa.Table:
    """Return the table with the widest form of each column's type, without metadata: equal values are then of equal type."""
    import pyarrow as pa

    schema = pa.schema([pa.field(field.name, _wide(field.type)) for field in table.schema])
    return table if table.schema.equals(schema, check_metadata=True) else table.replace_schema_metadata(None).cast(schema)


def declared(table: pa.Table, columns: Mapping[str, ColumnType | None]) -> pa.Table:
    """Give declared columns their types; a struct or list in a `json` column becomes its JSON text."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        declared = columns.get(field.name)
        if declared is None:
            continue
        if declared == "json" and pa.types.is_nested(field.type):
            texts = [None if value is None else _json(value) for value in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(texts, pa.large_string()))
        elif not field.type.equals(wanted := _wide(arrow_type(declared))):
            table = table.set_column(index, pa.field(field.name, wanted), _cast(table.column(index), wanted, field.name))
    return table


def settled(tables: Sequence[pa.Table], columns: Mapping[str, ColumnType | None]) -> pa.Schema:
    """Return the schema that all tables fit, declared columns first; a column that is null throughout is text."""
    import pyarrow as pa

    declared = [pa.field(name, _wide(arrow_type(kind)) if kind else pa.null()) for name, kind in columns.items()]
    try:
        found = pa.unify_schemas([pa.schema(declared), *(table.schema for table in tables)], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise WrongValue(f"rows: a column has two types, got {error}", "give it one") from error
    return pa.schema([pa.field(field.name, _no_null(field.type)) for field in found])


def _no_null(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_null(kind):
        return pa.large_string()
    if pa.types.is_large_list(kind):
        return pa.large_list(pa.field("element", _no_null(kind.value_type)))
    return pa.struct([pa.field(f.name, _no_null(f.type)) for f in kind]) if pa.types.is_struct(kind) and len(kind) else kind


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the schema's columns, null where it has none.

    Raises:
        ValueError: it has a column that the schema lacks, or values that a column's type can't hold.
    """
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    new = [name for name in table.column_names if schema.get_field_index(name) < 0]
    if new:
        raise WrongValue(
            f"rows: columns appear that the first rows lack, got {new}", "have them in all rows, null where unknown"
        )
    arrays = []
    for field in schema:
        at = table.schema.get_field_index(field.name)
        arrays.append(pa.nulls(len(table), field.type) if at < 0 else _cast(table.column(at), field.type, field.name))
    return pa.table(arrays, schema=schema)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType, name: str) -> pa.ChunkedArray:
    import pyarrow as pa

    if column.type.equals(wanted):
        return column
    try:
        return column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ValueError(f"column {name}: {column.type} doesn't fit {wanted}, got {error}") from error


def value_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column's values: the same for equal values, whatever buffers they are slices of."""
    return sum(map(_array_bytes, column.chunks))


def _array_bytes(values: pa.Array) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type):
        return int(pc.sum(pc.binary_length(values)).as_py() or 0) + 8 * len(values)
    if pa.types.is_large_list(values.type):
        return _array_bytes(values.flatten()) + 8 * len(values)
    if pa.types.is_struct(values.type):
        return sum(map(_array_bytes, values.flatten()))
    return 8 * len(values)
