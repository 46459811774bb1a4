"""Where a chain ends that goes on until enough of its rows passed: behind the row of its input with which enough have.

Owns which rows may begin, which count, and when that is known: they are settled in the order of the input, so that it doesn't
matter in which order they finish. What rows behind the end were made into stays in the ledger, and nowhere else.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.flow.batches import Changed, rows_to_batch
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.gguf import unpack
from caiflow.engine.operator import Job, Passing, TableOperator, Until

if TYPE_CHECKING:
    import pyarrow as pa

    from caiflow.engine.rows.columns import Row

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """What ends a chain: a step behind it that wants so many rows, with the models it goes by."""

    step: str
    operator: TableOperator[Any]
    models: Mapping[str, ModelSource] = field(default_factory=dict)

    @property
    def until(self) -> Until:
        """How many rows it wants, of how many."""
        found = self.operator.until()
        assert found is not None, self.step
        return found

    def passing(self) -> Passing:
        """Return what says which rows pass."""
        for source in self.models.values():
            unpack(source)
        return self.operator.passing(Job(Path(), models=self.models))


class Tried(NamedTuple):
    """How many rows of an input are settled, and how many rows of what they were made into passed."""

    rows: int = 0
    accepted: int = 0

    def lacking(self, until: Until) -> int:
        """Return how many rows are still wanted."""
        return max(0, until.accepted - self.accepted)

    def further(self, until: Until) -> int:
        """Return how many rows more it will take as rows pass so far."""
        return math.ceil(self.lacking(until) / self._rate)

    def ahead(self, until: Until) -> int:
        """Return how many rows more may begin: a standard deviation more than it takes; while few are settled, as many anew."""
        lacking = self.lacking(until)
        likely = math.ceil((lacking + math.sqrt(lacking * (1 - self._rate))) / self._rate)
        return min(likely, self.rows + lacking)

    @property
    def _rate(self) -> float:
        return min(1.0, (self.accepted + 1) / (self.rows + 1))

    def foretold(self, until: Until) -> str:
        """Return in words how many rows it will take, to follow why any are made; nothing where all wanted are there."""
        if not self.lacking(until):
            return ""
        more = f"; about {self.further(until):,} rows more as they pass so far" if self.rows else ""
        return f"; {self.told(until)}{more}"

    def told(self, until: Until) -> str:
        """Return `3,120 of 5,000 accepted`."""
        return f"{min(self.accepted, until.accepted):,} of {until.accepted:,} accepted"


@dataclass(slots=True)
class _Row:
    """A row of the input on its way: what is to be noted once it counts, and what the last step made of it."""

    table: pa.RecordBatch
    noted: list[Callable[[], None]] = field(default_factory=list)
    made: list[tuple[Order, Row]] = field(default_factory=list)
    over: bool = False
    waits: bool = False


class Cutting:
    """Lets rows of an input begin, `most` at the most, and finds the end; `changed` is what the chain does to their columns."""

    def __init__(self, cut: Cut, most: int, changed: Changed) -> None:
        self.until = cut.until
        self.most = min(most, self.until.at_most or most)
        self.tried = Tried()
        self.begun = 0
        self.end: int | None = None
        """How many rows of the input count, once that is known."""
        self._passing = cut.passing()
        self._changed = changed
        self._rows: dict[int, _Row] = {}
        self._any_waits = False
        self._settling = 0
        self._pending: deque[_Row] = deque()
        """Rows that are over, and all before them too, about which nothing is said yet."""

    def may_begin(self, place: int) -> bool:
        """Return whether the next row of the input should begin, as far as can be told."""
        return place < self.most and self.end is None and place < self.tried.rows + self.tried.ahead(self.until)

    def begin(self, place: int, table: pa.RecordBatch) -> None:
        """Let a row begin, which lies in `table`."""
        self._rows[place] = _Row(table)
        self.begun += 1

    def beyond(self, place: int) -> bool:
        """Return whether a row is known not to count."""
        return self.end is not None and place >= self.end

    def hold(self, place: int, note: Callable[[], None], made: Sequence[tuple[Order, Row]] = ()) -> None:
        """Have something noted once a row counts; `made` are the rows that the chain's last step made of it."""
        row = self._rows[place]
        row.noted.append(note)
        row.made += made

    def put_off(self, place: int) -> None:
        """Take in that a row waits for an answer that comes another time: neither it nor what is behind it is settled."""
        self._rows[place].waits = self._any_waits = True

    @property
    def comes_to_rest(self) -> bool:
        """Whether all rows on their way wait for such answers, or for rows that do."""
        return self._any_waits and all(row.over or row.waits for row in self._rows.values())

    def over(self, place: int, note: Callable[[], None]) -> None:
        """Take in that nothing more becomes of a row, which is to be noted, too."""
        row = self._rows[place]
        row.over = not row.waits
        row.noted.append(note)
        while self._settling in self._rows and self._rows[self._settling].over:
            self._pending.append(self._rows.pop(self._settling))
            self._settling += 1
        if 4 * len(self._pending) >= self.tried.lacking(self.until):
            self.judge()

    def judge(self) -> None:
        """Settle what is pending.

        Raises:
            ValueError: a rule doesn't fit the rows.
        """
        while self._pending and self.end is None:
            table, rows = self._pending[0].table, list(self._same_table())
            made = [(place, row) for one in rows for place, row in sorted(one.made, key=lambda pair: pair[0])]
            flags = self._passing(rows_to_batch(table, [(order[0], row) for order, row in made], self._changed)) if made else ()
            passed = iter(flags)
            for row in rows:
                if self.end is None:
                    self._count(row, sum(bool(next(passed)) for _ in row.made))

    def stop(self) -> None:
        """End with what is settled, if there is no end yet."""
        if self.end is None:
            self.judge()
        if self.end is None:
            self.end = self.tried.rows

    def expected(self) -> int:
        """Return how many rows of the input will count, as rows pass so far."""
        return self.end if self.end is not None else min(self.most, self.tried.rows + self.tried.further(self.until))

    def summary(self) -> str:
        """Return how it ended, in words."""
        tried, beyond = self.tried, self.begun - (self.end or 0)
        short = "; the input has no more" if tried.lacking(self.until) and tried.rows == self.most != self.until.at_most else ""
        kept = f"; {beyond:,} more began before that was known, and their answers are kept" if beyond else ""
        return f"{tried.told(self.until)} in the first {tried.rows:,} rows{short}{kept}"

    def _same_table(self) -> Iterator[_Row]:
        table = self._pending[0].table
        while self._pending and self._pending[0].table is table:
            yield self._pending.popleft()

    def _count(self, row: _Row, accepted: int) -> None:
        for note in row.noted:
            note()
        self.tried = Tried(self.tried.rows + 1, self.tried.accepted + accepted)
        if not self.tried.lacking(self.until):
            self.end = self.tried.rows
