"""Rows on disk: Parquet in fixed parts, read and written as Arrow streams.

Owns the layout of a rows artifact: `part-00000.parquet`, ... and beside them `__dropped/` with the rows left out and why
(two underscores: `datasets` passes such folders over). Equal rows give equal bytes however they were cut on their way in.
Never holds a whole table in memory, and never knows what a column means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.engine.rows.parts import BLOCK_ROWS, GROUP_ROWS, Parts
from caiflow.engine.rows.types import arrow_type, column_type, from_rows

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

__all__ = ["DROPPED", "Rows", "RowsWriter", "arrow_type", "column_type"]

DROPPED = "__dropped"


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

    def batches_at(self, rows: range, size: int = 1024) -> Iterator[pa.RecordBatch]:
        """Yield the rows at these places in order, at most `size` at a time; only the row groups that hold them are read."""
        for table in self._slices(rows.start, len(rows)):
            yield from table.to_batches(size)

    def scan(self) -> pl.LazyFrame:
        """Return a lazy polars frame over the rows."""
        import polars as pl

        files = self.files
        return pl.scan_parquet(files, missing_columns="raise") if files else pl.LazyFrame()

    def pylist(self, offset: int = 0, limit: int | None = None) -> list[Row]:
        """Return rows from `offset` on as dicts; only the row groups that hold them are read."""
        return [row for batch in self._slices(offset, limit) for row in batch.to_pylist()]

    def dropped(self) -> Rows:
        """Return the rows that were left out; they have one more column, `reason`; one of their own is `row_reason`."""
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
        self._parts = Parts(self.dir, self.columns)
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
        if len(self._rows) >= BLOCK_ROWS:
            self._flush_rows()

    def drop(self, data: pa.Table | pa.RecordBatch | pl.DataFrame | Sequence[Row], reason: str | Any) -> None:
        """Keep rows that are left out, with the reason: one text for all, or an array with one for each."""
        import pyarrow as pa

        dropped = self._left_out()
        if isinstance(data, Sequence):
            reasons = [reason] * len(data) if isinstance(reason, str) else list(reason)
            rows = ({_aside(name): value for name, value in row.items()} for row in data)
            dropped.write_rows([{**row, "reason": why} for row, why in zip(rows, reasons, strict=True)])
            return
        for table in _tables(data):
            values = pa.repeat(reason, len(table)) if isinstance(reason, str) else _array(reason)
            dropped.write(table.rename_columns([*map(_aside, table.column_names)]).append_column("reason", values))

    def append_dropped(self, data: pa.Table | pa.RecordBatch) -> None:
        """Keep rows that another writer left out, with the reasons that they have."""
        self._left_out().write(data)

    def _left_out(self) -> RowsWriter:
        if self._dropped is None:
            self._dropped = RowsWriter(self.dir / DROPPED, {_aside(name): kind for name, kind in self.columns.items()})
        return self._dropped

    def close(self) -> None:
        """Write what is left; afterwards the files are whole. A folder without rows still gets one file with the columns."""
        if self._closed:
            return
        try:
            self._flush_rows()
            self._parts.close()
            if self._dropped:
                self._dropped.close()
        finally:
            self._stop()

    def _stop(self) -> None:
        self._closed = True
        self._parts.stop()
        if self._dropped:
            self._dropped._stop()

    def _flush_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._parts.add(from_rows(rows, self.columns))


def _aside(name: str) -> str:
    """Return the name of a column of rows that are left out, where `reason` is another one; no two names become one."""
    return f"row_{name}" if re.fullmatch("(row_)*reason", name) else name


def _tables(data: Any) -> Iterator[pa.Table]:
    """Yield Arrow tables of whatever holds rows."""
    import pyarrow as pa

    if isinstance(data, pa.Table):
        yield data
    elif isinstance(data, pa.RecordBatch):
        yield pa.Table.from_batches([data])
    elif hasattr(data, "collect_batches"):
        for frame in data.collect_batches(chunk_size=GROUP_ROWS, maintain_order=True):
            yield frame.to_arrow()
    else:
        yield data.to_arrow()


def _array(values: Any) -> pa.Array:
    import pyarrow as pa

    return (
        values.to_arrow() if hasattr(values, "to_arrow") else values if hasattr(values, "combine_chunks") else pa.array(values)
    )
