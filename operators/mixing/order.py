"""Putting rows in an order of their own without holding the table: parts go to disk by their rank, then each part is sorted.

Never ranks or chooses rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

PART_BYTES = 32 << 20
"""What one part may hold in memory, about."""
_MOST_PARTS = 500  # each is an open file, of which a process has 1,024 as a rule
_AT_ONCE = 16_384
_RANK = "__rank"


class Arrange:
    """Takes rows with their ranks, spread evenly over 64 bits, and yields them by rank, equals as they came.

    A context that cleans up after itself. Where all fits into one part, nothing touches the disk.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._folder = folder
        self._parts = min(_MOST_PARTS, max(1, -(-size_bytes // PART_BYTES)))
        self._width = -(-(2**64) // self._parts)
        self._held: list[pa.Table] = []
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self._writers.values():
            writer.close()
        if self._writers:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, table: pa.Table, ranks: NDArray[np.uint64]) -> None:
        """Take rows and the rank of each [N]; all tables have the same schema."""
        import numpy as np
        import pyarrow as pa

        table = table.append_column(_RANK, pa.array(ranks))
        if self._parts == 1:
            self._held.append(table)
            return
        parts = ranks // np.uint64(self._width)
        order = np.argsort(parts, kind="stable")
        table, parts = table.take(pa.array(order)).combine_chunks(), parts[order]
        starts = np.flatnonzero(np.diff(parts.astype(np.int64), prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(parts)], strict=True):
            self._writer(int(parts[start]), table.schema).write_table(table.slice(start, end - start))

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows in the order of their ranks."""
        import pyarrow as pa

        held, self._held = self._held, []
        if held:
            yield from _sorted(pa.concat_tables(held))
        for part in sorted(self._writers):
            self._writers[part].close()
            with pa.OSFile(str(self._path(part))) as file:
                yield from _sorted(pa.ipc.open_stream(file).read_all())
            self._path(part).unlink()

    def _writer(self, part: int, schema: pa.Schema) -> Any:
        import pyarrow as pa

        if part not in self._writers:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writers[part] = pa.ipc.new_stream(str(self._path(part)), schema)
        return self._writers[part]

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:05d}.arrows"


def _sorted(table: pa.Table) -> Iterator[pa.Table]:
    """Yield a part's rows in order, some at a time: the part isn't there twice."""
    import numpy as np
    import pyarrow as pa

    order = np.argsort(table.column(_RANK).to_numpy(), kind="stable")
    table = table.drop_columns(_RANK).combine_chunks()
    for start in range(0, len(order), _AT_ONCE):
        yield table.take(pa.array(order[start : start + _AT_ONCE]))
