"""Rows on disk: Parquet in fixed parts, read and written as Arrow streams.

Owns the layout of a rows artifact: `part-00000.parquet`, ... and beside them `__dropped/` with the rows left out and why
(two underscores: `datasets` passes such folders over). Equal rows give equal bytes however they were cut on their way in.
Never holds a whole table in memory, and never knows what a column means.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from caiflow.engine.operator import ColumnType, Row
from caiflow.engine.store import storing

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

DROPPED = "__dropped"
_BLOCK_ROWS = 1024  # groups are cut at multiples of this, by figures that only depend on the rows
_GROUP_ROWS = 16384
_GROUP_BYTES = 16 << 20  # of values, not of memory: rows of any size stay within bounds
_PART_GROUPS = 4
_THREADS = 4  # parts are compressed side by side: one thread does 150 MB/s


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


class Rows:
    """The rows in a folder, as written by RowsWriter; opening one reads no data."""

    def __init__(self, dir: Path) -> None:
        self.dir = Path(dir)

    @property
    def files(self) -> list[Path]:
        """The Parquet files, in the order of their rows."""
        return sorted(self.dir.glob("*.parquet"))

    @property
    def num_rows(self) -> int:
        """The number of rows, read from the files' ends."""
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(file).num_rows for file in self.files)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema; empty where there is no file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = self.files
        return pq.read_schema(files[0]) if files else pa.schema([])

    @property
    def columns(self) -> dict[str, ColumnType | None]:
        """The columns in order, with their declared types; None for a type that has no name here."""
        return {field.name: column_type(field.type) for field in self.schema}

    def batches(self, size: int = 1024, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, at most `size` at a time."""
        import pyarrow.parquet as pq

        for path in self.files:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                yield from file.iter_batches(size, columns=None if columns is None else list(columns))

    def scan(self) -> pl.LazyFrame:
        """Return a lazy polars frame over the rows."""
        import polars as pl

        files = self.files
        return pl.scan_parquet(files, missing_columns="raise") if files else pl.LazyFrame()

    def pylist(self, offset: int = 0, limit: int | None = None) -> list[Row]:
        """Return rows from `offset` on as dicts; only the row groups that hold them are read."""
        return [row for batch in self._slices(offset, limit) for row in batch.to_pylist()]

    def dropped(self) -> Rows:
        """Return the rows that were left out; they have one more column, `reason`."""
        return Rows(self.dir / DROPPED)

    def _slices(self, offset: int, limit: int | None) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        for path in self.files:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for group in range(file.num_row_groups):
                    if limit is not None and limit <= 0:
                        return
                    size = file.metadata.row_group(group).num_rows
                    if offset < size:
                        table = file.read_row_group(group).slice(offset, limit)
                        limit = None if limit is None else limit - len(table)
                        yield table
                    offset = max(0, offset - size)


class RowsWriter:
    """Writes rows into a folder. Use as a context manager, or call `close`; on an error the files are left unfinished.

    `columns` fixes types where they aren't None; other columns take the type of their first rows. Tables may lack columns
    (null then), and have new ones until about 16,000 rows are in.
    """

    def __init__(self, dir: Path, columns: Mapping[str, ColumnType | None] | None = None) -> None:
        self.dir = Path(dir)
        self.columns = dict(columns or {})
        self.metrics: dict[str, Any] = {}
        self.num_rows = 0
        self._rows: list[Row] = []
        self._parts = _Parts(self.dir, self.columns)
        self._dropped: RowsWriter | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._stop()

    @property
    def num_dropped(self) -> int:
        """The number of rows left out so far."""
        return self._dropped.num_rows if self._dropped else 0

    def write(self, data: pa.Table | pa.RecordBatch | pl.DataFrame | pl.LazyFrame) -> None:
        """Append rows; a lazy frame is run as a stream, in order.

        Raises:
            StoreError: no space or no permission.
            ValueError: a column is new or has another type than before.
        """
        self._flush_rows()
        for table in _tables(data):
            self.num_rows += len(table)
            self._parts.add(table)

    def write_rows(self, rows: Sequence[Row]) -> None:
        """Append rows given as dicts; a `json` column may hold any JSON value."""
        self._rows += rows
        self.num_rows += len(rows)
        if len(self._rows) >= _BLOCK_ROWS:
            self._flush_rows()

    def drop(self, data: pa.Table | pa.RecordBatch | pl.DataFrame | Sequence[Row], reason: str | Any) -> None:
        """Keep rows that are left out, with the reason: one text for all, or an array with one for each."""
        import pyarrow as pa

        if self._dropped is None:
            self._dropped = RowsWriter(self.dir / DROPPED, self.columns)
        if isinstance(data, Sequence):
            reasons = [reason] * len(data) if isinstance(reason, str) else list(reason)
            self._dropped.write_rows([{**row, "reason": why} for row, why in zip(data, reasons, strict=True)])
            return
        for table in _tables(data):
            values = pa.repeat(reason, len(table)) if isinstance(reason, str) else _array(reason)
            given = table.drop_columns("reason") if "reason" in table.column_names else table
            self._dropped.write(given.append_column("reason", values))

    def close(self) -> None:
        """Write what is left; afterwards the files are whole. A folder without rows still gets one file with the columns."""
        if self._closed:
            return
        try:
            self._flush_rows()
            self._parts.close()
        finally:
            self._stop()
        if self._dropped:
            self._dropped.close()

    def _stop(self) -> None:
        self._closed = True
        self._parts.stop()
        if self._dropped and not self._dropped._closed:
            self._dropped._stop() if self._parts.failed else None

    def _flush_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._parts.add(_from_rows(rows, self.columns))


class _Parts:
    """Cuts a stream of tables into row groups and parts by its rows alone, and writes the parts side by side."""

    def __init__(self, dir: Path, columns: Mapping[str, ColumnType | None]) -> None:
        self.dir = dir
        self.failed = False
        self._columns = columns
        self._schema: pa.Schema | None = None
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._group: list[pa.Table] = []
        self._group_size = (0, 0)
        self._groups: list[pa.Table] = []
        self._next = 0
        self._pool: ThreadPoolExecutor | None = None
        self._writing: deque[Future[None]] = deque()

    def add(self, table: pa.Table) -> None:
        """Take rows in."""
        wide = _declared(_widen(table), self._columns)
        self._pending.append(wide if self._schema is None else _conform(wide, self._schema))
        self._pending_rows += len(table)
        if self._pending_rows >= (_GROUP_ROWS if self._schema is None else _BLOCK_ROWS):
            self._cut()

    def close(self) -> None:
        """Write the rest."""
        self._cut(rest=True)
        self._end_group()
        if self._groups or not self._next:
            self._submit()
        while self._writing:
            self._writing.popleft().result()

    def stop(self) -> None:
        """Let the threads go."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _cut(self, rest: bool = False) -> None:
        import pyarrow as pa

        if self._schema is None:
            self._schema = _settled(self._pending, self._columns)
            self._pending = [_conform(table, self._schema) for table in self._pending]
        if not self._pending:
            return
        for table in _blocks(pa.concat_tables(self._pending), _BLOCK_ROWS):
            if len(table) < _BLOCK_ROWS and not rest:
                self._pending, self._pending_rows = [table], len(table)
                return
            self._enter(table)
        self._pending, self._pending_rows = [], 0

    def _enter(self, block: pa.Table) -> None:
        rows, size = self._group_size
        self._group.append(block)
        self._group_size = rows, size = rows + len(block), size + sum(map(_value_bytes, block.columns))
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            self._end_group()

    def _end_group(self) -> None:
        import pyarrow as pa

        if self._group:
            self._groups.append(pa.concat_tables(self._group))
            self._group, self._group_size = [], (0, 0)
        if len(self._groups) >= _PART_GROUPS:
            self._submit()

    def _submit(self) -> None:
        path = self.dir / f"part-{self._next:05d}.parquet"
        groups, self._groups = self._groups, []
        self._next += 1
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "rows-write")
        self._writing.append(self._pool.submit(_write_part, path, self._schema, groups))
        if len(self._writing) > _THREADS:  # bounds the memory, and brings errors up early
            self._writing.popleft().result()


def _write_part(path: Path, schema: pa.Schema, groups: list[pa.Table]) -> None:
    import pyarrow.parquet as pq

    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # without Arrow's own schema inside: large_string and string are then the same bytes
        with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, store_schema=False) as writer:
            for group in groups:
                writer.write_table(group.combine_chunks(), row_group_size=len(group))


def _tables(data: Any) -> Iterator[pa.Table]:
    """Yield Arrow tables of whatever holds rows."""
    import pyarrow as pa

    if isinstance(data, pa.Table):
        yield data
    elif isinstance(data, pa.RecordBatch):
        yield pa.Table.from_batches([data])
    elif hasattr(data, "collect_batches"):
        for frame in data.collect_batches(chunk_size=_GROUP_ROWS, maintain_order=True):
            yield frame.to_arrow()
    else:
        yield data.to_arrow()


def _array(values: Any) -> pa.Array:
    import pyarrow as pa

    return (
        values.to_arrow() if hasattr(values, "to_arrow") else values if hasattr(values, "combine_chunks") else pa.array(values)
    )


def _from_rows(rows: Sequence[Row], columns: Mapping[str, ColumnType | None]) -> pa.Table:
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


# ---------------------------------------------------------------------------------------------------------- types


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


def _widen(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    schema = pa.schema([pa.field(field.name, _wide(field.type)) for field in table.schema])
    return table if table.schema.equals(schema, check_metadata=True) else table.replace_schema_metadata(None).cast(schema)


def _declared(table: pa.Table, columns: Mapping[str, ColumnType | None]) -> pa.Table:
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


def _settled(tables: Sequence[pa.Table], columns: Mapping[str, ColumnType | None]) -> pa.Schema:
    """Return the schema that all tables fit, declared columns first; a column that is null throughout is text."""
    import pyarrow as pa

    declared = [pa.field(name, _wide(arrow_type(kind)) if kind else pa.null()) for name, kind in columns.items()]
    try:
        found = pa.unify_schemas([pa.schema(declared), *(table.schema for table in tables)], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"rows: a column has two types, got {error}; give it one") from error
    return pa.schema([pa.field(field.name, _no_null(field.type)) for field in found])


def _no_null(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_null(kind):
        return pa.large_string()
    if pa.types.is_large_list(kind):
        return pa.large_list(pa.field("element", _no_null(kind.value_type)))
    return pa.struct([pa.field(f.name, _no_null(f.type)) for f in kind]) if pa.types.is_struct(kind) and len(kind) else kind


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    new = [name for name in table.column_names if schema.get_field_index(name) < 0]
    if new:
        raise ValueError(f"rows: columns appear that the first rows lack, got {new}; have them in all rows, null where unknown")
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


def _blocks(table: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), size):
        yield table.slice(start, size)


def _value_bytes(column: pa.ChunkedArray) -> int:
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
