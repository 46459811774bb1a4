"""Cutting a stream of tables into Parquet row groups and files by its rows alone, and writing the files side by side.

Equal rows give equal bytes however they were cut on their way in, so that their content digests agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.machine import cores
from caiflow.engine.rows.columns import ColumnType
from caiflow.engine.rows.types import conform, declared, settled, value_bytes, widen
from caiflow.engine.store.disk import storing

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_ROWS = 1024  # groups are cut at multiples of this, by figures that only depend on the rows
GROUP_ROWS = 16384
_GROUP_BYTES = 16 << 20  # of values, not of memory: rows of any size stay within bounds
_PART_GROUPS = 4
_THREADS = 4  # parts are compressed side by side, on as many cores as there are: one does 150 MB/s, and each holds its part


class Parts:
    """Cuts a stream of tables into row groups and parts by its rows alone, and writes the parts side by side."""

    def __init__(self, dir: Path, columns: Mapping[str, ColumnType | None]) -> None:
        self.dir = dir
        self._columns = columns
        self._schema: pa.Schema | None = None
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._group: list[pa.Table] = []
        self._group_size = (0, 0)
        self._groups: list[pa.Table] = []
        self._next = 0
        self._threads = min(_THREADS, cores())
        self._pool: ThreadPoolExecutor | None = None
        self._writing: deque[Future[None]] = deque()

    def add(self, table: pa.Table) -> None:
        """Take rows in."""
        wide = declared(widen(table), self._columns)
        self._pending.append(wide if self._schema is None else conform(wide, self._schema))
        self._pending_rows += len(table)
        if self._pending_rows >= (GROUP_ROWS if self._schema is None else BLOCK_ROWS):
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
            self._schema = settled(self._pending, self._columns)
            self._pending = [conform(table, self._schema) for table in self._pending]
        if not self._pending:
            return
        for table in _blocks(pa.concat_tables(self._pending), BLOCK_ROWS):
            if len(table) < BLOCK_ROWS and not rest:
                self._pending, self._pending_rows = [table], len(table)
                return
            self._enter(table)
        self._pending, self._pending_rows = [], 0

    def _enter(self, block: pa.Table) -> None:
        rows, size = self._group_size
        self._group.append(block)
        self._group_size = rows, size = rows + len(block), size + sum(map(value_bytes, block.columns))
        if rows >= GROUP_ROWS or size >= _GROUP_BYTES:
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
            self._pool = ThreadPoolExecutor(self._threads, "rows-write")
        self._writing.append(self._pool.submit(_write_part, path, self._schema, groups))
        if len(self._writing) > self._threads:  # bounds the memory, and brings errors up early
            self._writing.popleft().result()


def _write_part(path: Path, schema: pa.Schema, groups: list[pa.Table]) -> None:
    import pyarrow.parquet as pq

    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # without Arrow's own schema inside: large_string and string are then the same bytes
        with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, store_schema=False) as writer:
            for group in groups:
                writer.write_table(group.combine_chunks(), row_group_size=len(group))


def _blocks(table: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), size):
        yield table.slice(start, size)
