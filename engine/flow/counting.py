"""Counting what the ledger holds for a chain of row steps, without asking any model: the plan's half of the flow.

Replays rows exactly as the run does (the same keys, the same `replay`); large tables are counted by several processes.
"""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from caiflow.engine.flow.row_llm import Tally
from caiflow.engine.flow.stream import BATCH_ROWS, FlowStep, replay, spread
from caiflow.engine.machine import cores

if TYPE_CHECKING:
    from caiflow.engine.rows.columns import Row
    from caiflow.engine.rows.folder import Rows
    from caiflow.engine.store.ledger import Ledger

ROWS_PER_PROCESS = 20_000
"""A process is worth its start only from about this many rows on."""
_COUNTED = ("total", "cached", "rows_out", "tokens", "calls")

LedgerOf = Callable[[str], "Ledger"]


def count_known(steps: Sequence[FlowStep], source: Rows, ledger_of: LedgerOf) -> dict[str, Tally]:
    """Walk the rows as a run would and count, per step, what the ledger holds.

    A row that must run counts once in `total` of every step after it, since it may come there.
    """
    for step in steps:
        ledger_of(step.namespace)  # opened before any fork: the index is shared, not read again
    processes = max(1, min(cores(), source.num_rows // ROWS_PER_PROCESS))
    if processes == 1:
        return _Counter(steps, ledger_of).count(_rows(source, 0, 1))
    global _forked
    _forked = (_Counter(steps, ledger_of), source)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        parts = list(pool.map(_count_share, [(i, processes) for i in range(processes)]))
    _forked = None
    return {step.name: _sum([part[step.name] for part in parts]) for step in steps}


_forked: tuple[_Counter, Rows] | None = None


def _count_share(share: tuple[int, int]) -> dict[str, Tally]:
    assert _forked is not None
    counter, source = _forked
    return counter.count(_rows(source, *share))


def _sum(parts: Sequence[Tally]) -> Tally:
    total = Tally()
    for name in _COUNTED:
        setattr(total, name, sum(getattr(part, name) for part in parts))
    return total


def _rows(source: Rows, share: int, of: int) -> Iterator[Row]:
    """Yield every `of`-th batch's rows, from batch number `share` on."""
    for number, table in enumerate(source.batches(BATCH_ROWS)):
        if number % of == share:
            yield from table.to_pylist()


class _Counter:
    """The tree of steps, ready to count."""

    def __init__(self, steps: Sequence[FlowStep], ledger_of: LedgerOf) -> None:
        names = {step.name for step in steps}
        self._names = [step.name for step in steps]
        self._ledger_of = ledger_of
        self._written = {step.name: step.operator.writes() for step in steps}
        self._outdated = {step.name: step.operator.outdates() for step in steps}
        self._children: Mapping[str, list[FlowStep]] = defaultdict(list)
        for step in steps:
            self._children[step.source if step.source in names else ""].append(step)

    def count(self, rows: Iterator[Row]) -> dict[str, Tally]:
        """Return the tallies of these rows."""
        tallies = {name: Tally() for name in self._names}
        for row in rows:
            self._row(self._children[""], row, frozenset(), tallies)
        return tallies

    def _row(self, steps: Sequence[FlowStep], row: Row, coming: frozenset[str], tallies: Mapping[str, Tally]) -> None:
        """Count a row and what follows from it; `coming` names the columns that steps which must run have yet to write."""
        for step in steps:
            tally = tallies[step.name]
            tally.total += 1
            following = self._children.get(step.name, [])
            view = step.view(row)
            outcome = None if coming else replay(step.row_key(view), self._ledger_of(step.namespace))
            if outcome is None:
                tally.calls += step.operator.calls_for(view, coming)
                if following:
                    self._row(following, row, coming.union(self._written[step.name]), tallies)
                continue
            tally.cached += 1
            tally.tokens += outcome.tokens
            tally.rows_out += len(outcome.rows)
            for new in spread(row, outcome, self._outdated[step.name]) if outcome.rows and following else ():
                self._row(following, new, coming, tallies)
