"""Cutting a stream of tables into Parquet row groups and files by its rows alone, and writing the files side by side.

Equal rows give equal bytes however they were cut on their way in, so that their content digests agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.errors import StoreError
from caiflow.engine.machine import cores
from caiflow.engine.rows.columns import ColumnType
from caiflow.engine.rows.types import conform, declared, settled, value_bytes, widen
from caiflow.engine.store.disk import storing

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BLOCK_ROWS = 1024  # groups are cut at multiples of this, by figures that only depend on the rows
GROUP_ROWS = 16384
_GROUP_BYTES = 16 << 20  # of values, not of memory: rows of any size stay within bounds
_PART_GROUPS = 4
_THREADS = 4  # parts are compressed side by side, on as many cores as there are: one does 150 MB/s


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
        self._part: _Part | None = None
        self._next = 0
        self._lanes = [ThreadPoolExecutor(1, "rows-write") for _ in range(min(_THREADS, cores()))]
        self._most = 2 * len(self._lanes) + 1  # groups that wait: all lanes have work while parts are begun a few groups apart
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
        if self._part or not self._next:
            self._end_part(self._part or self._begin_part())
        while self._writing:
            self._writing.popleft().result()

    def stop(self) -> None:
        """Let the threads go; a file that isn't whole stays as it is."""
        for lane in self._lanes:
            lane.shutdown(cancel_futures=True)
        if self._part:
            with suppress(StoreError):
                self._part.close()

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

        if not self._group:
            return
        group = pa.concat_tables(self._group).combine_chunks()  # no longer slices of whatever larger tables came in
        self._group, self._group_size = [], (0, 0)
        part = self._part or self._begin_part()
        part.groups += 1
        self._submit(part.lane.submit(part.write, group))
        if part.groups == _PART_GROUPS:
            self._end_part(part)

    def _begin_part(self) -> _Part:
        lane = self._lanes[self._next % len(self._lanes)]
        self._part = _Part(self.dir / f"part-{self._next:05d}.parquet", self._schema, lane)
        self._next += 1
        return self._part

    def _end_part(self, part: _Part) -> None:
        self._part = None
        self._submit(part.lane.submit(part.close))

    def _submit(self, task: Future[None]) -> None:
        self._writing.append(task)
        if len(self._writing) > self._most:  # bounds the memory, and brings errors up early
            self._writing.popleft().result()


class _Part:
    """A file in the making, to which one thread writes groups while later ones are still made."""

    def __init__(self, path: Path, schema: pa.Schema, lane: ThreadPoolExecutor) -> None:
        self.lane = lane
        self.groups = 0
        self._path, self._schema = path, schema
        self._writer: pq.ParquetWriter | None = None

    def write(self, group: pa.Table) -> None:
        """Write one more group."""
        with storing(self._path):
            self._opened().write_table(group, row_group_size=len(group))

    def close(self) -> None:
        """Write the file's end."""
        with storing(self._path):
            self._opened().close()

    def _opened(self) -> pq.ParquetWriter:
        import pyarrow.parquet as pq

        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # without Arrow's own schema inside: large_string and string are then the same bytes
            self._writer = pq.ParquetWriter(
                self._path, self._schema, compression="zstd", compression_level=1, store_schema=False
            )
        return self._writer


def _blocks(table: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), size):
        yield table.slice(start, size)
