"""One input of a mixture: which of its rows are fit for it, a seeded draw among those, and reading the drawn ones in order.

Never knows the other inputs, nor how many rows are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from caiflow.engine.rows.conversations import said
from caiflow.operators.mixing.draws import ranks

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from caiflow.engine.rows.folder import Rows

_BATCH = 16_384
_SAMPLED = 1024
REASONS = ("", "incomplete", "held_out")
"""Why a row isn't fit: a column that must be there is null or empty, or its prompt, or the opening of that, is held out."""


@dataclass(frozen=True)
class Pool:
    """The rows of one input: uids [N] and, as a place in REASONS, whether each is fit [N]."""

    name: str
    rows: Rows
    uids: pa.Array
    states: NDArray[np.int8]

    @cached_property
    def fit(self) -> int:
        """How many rows are fit."""
        return self.count("")

    def count(self, reason: str) -> int:
        """Return how many rows have this reason."""
        return int((self.states == REASONS.index(reason)).sum())

    def why_none(self) -> str:
        """Return what became of its rows, for an input of which none is fit: those left out here, or by the step itself."""
        from collections import Counter

        counts = {reason: number for reason in REASONS[1:] if (number := self.count(reason))}
        if not len(self.states) and (left := self.rows.dropped()).num_rows:
            batches = left.batches(_BATCH, ["reason"])
            counts = dict(Counter(reason for batch in batches for reason in batch.column("reason").to_pylist()).most_common())
        told = ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
        rows = f"{self.name} has {len(self.states):,} rows"
        return f"{rows}: {told}" if len(self.states) or not told else f"{rows}, having left out {told}"

    @cached_property
    def row_bytes(self) -> float:
        """The bytes of a row in memory, about: the first rows of each file tell, as files write what repeats but once."""
        import pyarrow.parquet as pq

        size = number = 0
        for path in self.rows.files:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in islice(file.iter_batches(_SAMPLED), 1):
                    size, number = size + batch.nbytes, number + len(batch)
        return float(size / max(1, number))

    def draw(self, wanted: int, seed: int) -> NDArray[np.int64]:
        """Return `wanted` row numbers among the fit ones, ascending; each row is in before any is repeated.

        Which they are depends on the seed and the uids; a larger draw has all of a smaller one.
        """
        import numpy as np

        among = np.flatnonzero(self.states == 0)
        rounds, rest = divmod(wanted, len(among))
        order = np.argsort(ranks(self.uids.take(among), seed, "draw"), kind="stable") if rest else among[:0]
        return np.sort(np.concatenate([np.repeat(among, rounds), among[order[:rest]]]))

    def uids_of(self, numbers: NDArray[np.int64]) -> pa.Array:
        """Return the uids of the rows with these numbers, as `draw` gives them."""
        return self.uids if len(numbers) == self.fit == len(self.uids) else self.uids.take(numbers)

    def read(self, numbers: NDArray[np.int64]) -> Iterator[tuple[slice, pa.Table]]:
        """Yield the rows with these ascending numbers, in tables, each with the slice of `numbers` that it holds."""
        import numpy as np

        for start, table in self._tables():
            low, high = np.searchsorted(numbers, [start, start + len(table)])
            if high > low:
                yield slice(int(low), int(high)), table.take(numbers[low:high] - start)

    def unfit(self) -> Iterator[tuple[pa.Table, pa.Array]]:
        """Yield the rows that aren't fit, with the reason of each; reads nothing where all are."""
        import numpy as np
        import pyarrow as pa

        if not self.states.any():
            return
        for start, table in self._tables():
            places = np.flatnonzero(self.states[start : start + len(table)])
            if len(places):
                yield table.take(places), pa.array([REASONS[state] for state in self.states[start + places]])

    def _tables(self) -> Iterator[tuple[int, pa.Table]]:
        import pyarrow as pa

        start = 0
        for batch in self.rows.batches(_BATCH):
            yield start, pa.Table.from_batches([batch])
            start += len(batch)


def open_pool(name: str, rows: Rows, required: Sequence[str], held_out: NDArray[np.uint64] | None) -> Pool:
    """Return the pool of an input; rows with nothing in a column of `required`, or a prompt among `held_out`, aren't fit."""
    import numpy as np
    import pyarrow as pa

    texts = {column for column in required if _is_text(rows.schema.field(column).type)}
    wanted = [column for column in required if column in texts or _may_be_null(rows, column)]
    read = dict.fromkeys(["uid", *wanted, *(["prompt"] if held_out is not None else [])])
    uids, states = [pa.array([], pa.string())], [np.empty(0, np.int8)]
    for batch in rows.batches(_BATCH, list(read)):
        state = np.zeros(len(batch), np.int8)
        if held_out is not None:
            prompts = batch.column("prompt")
            leaks = np.isin(said(prompts), held_out) | np.isin(said(prompts, opening=True), held_out)
            state[leaks] = REASONS.index("held_out")
        for column in wanted:
            values = batch.column(column)
            lacking = _empty(values) if column in texts else values.is_null()
            state[lacking.to_numpy(zero_copy_only=False)] = REASONS.index("incomplete")
        uids.append(batch.column("uid").cast(pa.string()))
        states.append(state)
    return Pool(name, rows, pa.concat_arrays(uids), np.concatenate(states))


def prompt_keys(inputs: Sequence[Rows]) -> NDArray[np.uint64] | None:
    """Return the distinct prompts of some inputs, as `said` tells them; None without inputs."""
    import numpy as np

    if not inputs:
        return None
    found = [said(batch.column("prompt")) for rows in inputs for batch in rows.batches(_BATCH, ["prompt"])]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _empty(texts: pa.Array) -> pa.Array:
    """Return which texts are null or nothing but spaces."""
    import pyarrow.compute as pc

    return pc.equal(pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), 0)


def _may_be_null(rows: Rows, column: str) -> bool:
    """Return whether the files' statistics leave room for nulls in a column."""
    import pyarrow.parquet as pq

    for file in rows.files:
        metadata = pq.read_metadata(file)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            leaves = [group.column(place) for place in range(group.num_columns)]
            own = [leaf.statistics for leaf in leaves if leaf.path_in_schema.split(".")[0] == column]
            if any(found is None or not found.has_null_count or found.null_count for found in own):
                return True
    return False
