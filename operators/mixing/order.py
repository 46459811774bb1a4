"""Putting rows in an order of their own without holding the table: parts go to disk by their place, then each part is sorted.

Never chooses rows or places.
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

PART_BYTES = 64 << 20
"""What one part may hold in memory, about."""
_PLACE = "__place"


class Arrange:
    """Takes rows with their places in 0..`rows`, in any order, and yields them by place; a context that cleans up after itself.

    Where all fits into one part, nothing touches the disk.
    """

    def __init__(self, folder: Path, rows: int, size_bytes: int) -> None:
        self._folder = folder
        self._parts = max(1, -(-size_bytes // PART_BYTES))
        self._rows_per_part = max(1, -(-rows // self._parts))
        self._held: list[pa.Table] = []
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self._writers.values():
            writer.close()
        if self._writers:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, table: pa.Table, places: NDArray[np.int64]) -> None:
        """Take rows and the place of each [N]; all tables have the same schema."""
        import numpy as np
        import pyarrow as pa

        table = table.append_column(_PLACE, pa.array(places))
        if self._parts == 1:
            self._held.append(table)
            return
        parts = places // self._rows_per_part
        order = np.argsort(parts, kind="stable")
        table, parts = table.take(pa.array(order)).combine_chunks(), parts[order]
        starts = np.flatnonzero(np.diff(parts, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(parts)], strict=True):
            self._writer(int(parts[start]), table.schema).write_table(table.slice(start, end - start))

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows in the order of their places, a part at a time."""
        import pyarrow as pa

        if self._held:
            yield _sorted(pa.concat_tables(self._held))
        for part in sorted(self._writers):
            self._writers[part].close()
            with pa.OSFile(str(self._path(part))) as file:
                yield _sorted(pa.ipc.open_stream(file).read_all())
            self._path(part).unlink()

    def _writer(self, part: int, schema: pa.Schema) -> Any:
        import pyarrow as pa

        if part not in self._writers:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writers[part] = pa.ipc.new_stream(str(self._path(part)), schema)
        return self._writers[part]

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:05d}.arrows"


def _sorted(table: pa.Table) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    order = np.argsort(table.column(_PLACE).to_numpy(), kind="stable")
    return table.drop_columns(_PLACE).take(pa.array(order))
