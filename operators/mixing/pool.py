"""One input of a mixture: which of its rows are fit for it, a seeded draw among those, and reading the drawn ones in order.

Never knows the other inputs, nor how many rows are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from caiflow.engine.rows.conversations import said
from caiflow.engine.rows.keys import among
from caiflow.operators.mixing.draws import ranks

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from caiflow.engine.rows.folder import Rows

_BATCH = 16_384
_SAMPLED = 1024
DRAW = "draw"
"""What the ranks of a pool are for."""
REASONS = ("", "incomplete", "held_out")
"""Why a row isn't fit: a column that must be there is null or empty, or its prompt, or the opening of that, is held out."""


class Draw(NamedTuple):
    """What is taken of a pool: each of its fit rows `rounds` times, and once more where `more` [N] says so."""

    rounds: int
    more: NDArray[np.bool_]


@dataclass(frozen=True)
class Pool:
    """The rows of one input, and whether each is fit [N], a place in REASONS, and its rank in the draw [N]: 9 bytes a row."""

    name: str
    rows: Rows
    states: NDArray[np.int8]
    ranks: NDArray[np.uint64]

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

    def uid_of(self, reason: str) -> str:
        """Return the uid of the first row that has this reason."""
        first = int((self.states == REASONS.index(reason)).argmax())
        (batch,) = self.rows.batches_at(range(first, first + 1))
        return str(batch.column("uid")[0])

    def row_bytes(self, shaped: Callable[[pa.Table], pa.Table]) -> float:
        """Return the bytes of a row in memory once it is shaped, about.

        The first rows of each file tell, as files write what repeats but once.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = number = 0
        for path in self.rows.files:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in islice(file.iter_batches(_SAMPLED), 1):
                    size, number = size + shaped(pa.Table.from_batches([batch])).nbytes, number + len(batch)
        return float(size / max(1, number))

    def draw(self, wanted: int) -> Draw:
        """Return `wanted` of the fit rows; each row is in before any is repeated.

        Which they are depends on the seed and the uids; a larger draw has all of a smaller one.
        """
        import numpy as np

        rounds, rest = divmod(wanted, self.fit)
        more = np.zeros(len(self.states), bool)
        if rest:
            fit = self.states == 0
            ordered = self.ranks[fit]
            ordered.partition(rest - 1)
            more = fit & (self.ranks < ordered[rest - 1])
            last = np.flatnonzero(fit & (self.ranks == ordered[rest - 1]))
            more[last[: rest - int(more.sum())]] = True
        return Draw(rounds, more)

    def ranks_of(self, draw: Draw) -> NDArray[np.uint64]:
        """Return the ranks of drawn rows [K], in order: equal where uids are."""
        import numpy as np

        fit = self.states == 0
        if not draw.rounds:
            return self.ranks[draw.more]
        once = draw.rounds == 1 and not draw.more.any()
        return self.ranks[fit] if once else np.repeat(self.ranks[fit], draw.rounds + draw.more[fit])

    def read(self, draw: Draw, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the drawn rows in order, in tables; one that is drawn several times is there as often."""
        import numpy as np

        for start, table in self._tables(columns):
            places = np.flatnonzero(self.states[start : start + len(table)] == 0)
            taken = np.repeat(places, draw.rounds + draw.more[start + places])
            for at in range(0, len(taken), _BATCH):
                yield table.take(taken[at : at + _BATCH])

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

    def _tables(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        import pyarrow as pa

        start = 0
        for batch in self.rows.batches(_BATCH, columns):
            yield start, pa.Table.from_batches([batch])
            start += len(batch)


def open_pool(name: str, rows: Rows, required: Sequence[str], held_out: NDArray[np.uint64] | None, seed: int) -> Pool:
    """Return the pool of an input; rows with nothing in a column of `required`, or a prompt among `held_out`, aren't fit."""
    import numpy as np

    texts = {column for column in required if _is_text(rows.schema.field(column).type)}
    wanted = [column for column in required if column in texts or _may_be_null(rows, column)]
    read = dict.fromkeys(["uid", *wanted, *(["prompt"] if held_out is not None else [])])
    ranked, states = [np.empty(0, np.uint64)], [np.empty(0, np.int8)]
    for batch in rows.batches(_BATCH, list(read)):
        state = np.zeros(len(batch), np.int8)
        if held_out is not None:
            prompts = batch.column("prompt")
            leaks = among(said(prompts), held_out) | among(said(prompts, opening=True), held_out)
            state[leaks] = REASONS.index("held_out")
        for column in wanted:
            values = batch.column(column)
            lacking = _empty(values) if column in texts else values.is_null()
            state[lacking.to_numpy(zero_copy_only=False)] = REASONS.index("incomplete")
        ranked.append(ranks(batch.column("uid"), seed, DRAW))
        states.append(state)
    return Pool(name, rows, np.concatenate(states), np.concatenate(ranked))


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
