"""Counting what the ledger holds for a chain of row steps, without asking any model: the plan's half of the flow.

Replays rows exactly as the run does (the same keys, the same `replay`); large tables are counted by several processes, each
started afresh: a fork would copy the locks that threads of pyarrow or polars hold at that moment, for good.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.errors import CaiflowError
from caiflow.engine.flow.batches import Changed
from caiflow.engine.flow.collecting import seldom_collected
from caiflow.engine.flow.cutting import Cut, Cutting, Tried
from caiflow.engine.flow.outcomes import FlowStep, Outcome, replay, replay_many, spread
from caiflow.engine.flow.row_llm import Tally
from caiflow.engine.flow.stream import BATCH_ROWS
from caiflow.engine.machine import cores
from caiflow.engine.operator import Expected
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows
from caiflow.engine.store.ledger import Ledger

ROWS_PER_PROCESS = 50_000
"""Such rows take seconds, a process's start and its ledgers about one."""
_COUNTED = ("total", "cached", "rows_out", "tokens", "calls")

LedgerOf = Callable[[str], Ledger]


def count_known(steps: Sequence[FlowStep], source: Rows, ledger_of: LedgerOf) -> dict[str, Tally]:
    """Walk the rows as a run would and count, per step, what the ledger holds.

    A row that must run counts in `total` of every step after it, once for each row that it may become there.
    """
    processes = max(1, min(cores(), source.num_rows // ROWS_PER_PROCESS))
    if processes == 1:
        return _Counter(steps, ledger_of).count(_rows(source, 0, 1))
    ledgers = {step.namespace: ledger_of(step.namespace).path for step in steps}
    shares = [_Share(steps, source.dir, ledgers, i, processes) for i in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(_counted_elsewhere, shares))
    return {step.name: _sum([part[step.name] for part in parts]) for step in steps}


def count_first(steps: Sequence[FlowStep], source: Rows, ledger_of: LedgerOf, number: int) -> dict[str, Tally]:
    """Count the same for the first rows alone."""
    return _Counter(steps, ledger_of).count(_first(_rows(source, 0, 1), number))


def count_until(
    steps: Sequence[FlowStep], source: Rows, ledger_of: LedgerOf, cut: Cut, *, whole: bool
) -> tuple[dict[str, Tally], Tried]:
    """Count the same for a chain that ends where enough rows pass: up to there, or as many rows as it begins with at the most.

    Return also how many rows the ledger holds wholly, and how many of them pass; none where `steps` aren't the `whole` chain.
    """
    counter, changed = _Counter(steps, ledger_of), Changed()
    for step in steps:
        changed = changed.by(step.operator)
    tallies = {step.name: Tally() for step in steps}
    cutting = Cutting(cut, source.num_rows, changed)
    known: list[bool] = []
    place = 0
    for table in source.batches(BATCH_ROWS):
        for index, row in enumerate(table.to_pylist()):
            if place == cutting.most or cutting.end is not None:
                break
            made = counter.replayed(row) if whole else None
            cutting.begin(place, table)
            cutting.hold(place, partial(counter.add, row, tallies), [((index, i), new) for i, new in enumerate(made or ())])
            cutting.over(place, partial(known.append, made is not None))
            place += 1
    cutting.stop()
    return tallies, Tried(sum(known), cutting.tried.accepted)


class _Share(NamedTuple):
    """What one of `of` processes counts."""

    steps: Sequence[FlowStep]
    source: Path
    ledgers: Mapping[str, Path]
    number: int
    of: int


def _counted_elsewhere(share: _Share) -> dict[str, Tally]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    sent = pickle.dumps(tuple(share))
    done = subprocess.run([sys.executable, "-m", __name__], input=sent, stdout=subprocess.PIPE, env=environment, check=True)
    counted: dict[str, Tally] | CaiflowError = pickle.loads(done.stdout)
    if isinstance(counted, CaiflowError):
        raise counted
    return counted


def _serve() -> None:
    """Count the share on standard input, and write the tallies, or the error, on standard output."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what operators print
    share = _Share(*pickle.load(sys.stdin.buffer))
    ledgers = {name: Ledger(path.parent, name) for name, path in share.ledgers.items()}
    counted: dict[str, Tally] | CaiflowError
    try:
        counted = _Counter(share.steps, ledgers.__getitem__).count(_rows(Rows(share.source), share.number, share.of))
    except CaiflowError as error:
        counted = error
    with answer:
        pickle.dump(counted, answer)


def _sum(parts: Sequence[Tally]) -> Tally:
    total = Tally()
    for name in _COUNTED:
        setattr(total, name, sum(getattr(part, name) for part in parts))
    return total


def _rows(source: Rows, share: int, of: int) -> Iterator[list[Row]]:
    """Yield every `of`-th batch's rows, from batch number `share` on."""
    for number, table in enumerate(source.batches(BATCH_ROWS)):
        if number % of == share:
            yield table.to_pylist()


def _first(batches: Iterator[list[Row]], number: int) -> Iterator[list[Row]]:
    while number > 0 and (rows := next(batches, None)) is not None:
        yield rows[:number]
        number -= len(rows)


class _Coming(NamedTuple):
    """What steps that must run have yet to write: the columns, and the rows that one row may become."""

    columns: frozenset[str] = frozenset()
    rows: int = 1


class _Counter:
    """The tree of steps, ready to count."""

    def __init__(self, steps: Sequence[FlowStep], ledger_of: LedgerOf) -> None:
        names = {step.name for step in steps}
        self._steps = steps
        self._names = [step.name for step in steps]
        self._ledger_of = ledger_of
        self._written = {step.name: step.operator.writes() for step in steps}
        self._outdated = {step.name: step.operator.outdates() for step in steps}
        self._children: Mapping[str, list[FlowStep]] = defaultdict(list)
        self._given: dict[str, Expected] = {}
        """What one row may be that comes to a step."""
        self._made: dict[str, Expected] = {}
        """What it may become there."""
        for step in steps:
            self._children[step.source if step.source in names else ""].append(step)
            self._given[step.name] = given = self._made.get(step.source, Expected(1))._replace(rows=1)
            self._made[step.name] = step.operator.expects({step.source: given}) or given

    def count(self, batches: Iterator[list[Row]]) -> dict[str, Tally]:
        """Return the tallies of these rows."""
        tallies = {name: Tally() for name in self._names}
        with seldom_collected():
            for rows in batches:
                self._rows(self._children[""], rows, _Coming(), tallies)
        return tallies

    def add(self, row: Row, tallies: Mapping[str, Tally]) -> None:
        """Count a row of the source and what follows from it."""
        self._rows(self._children[""], [row], _Coming(), tallies)

    def replayed(self, row: Row) -> list[Row] | None:
        """Return what the last of steps one behind the other made of a row; None where the ledger doesn't hold all of it."""
        rows = [row]
        for step in self._steps:
            outcomes = [(one, replay(step, step.row_key(step.view(one)), self._ledger_of(step.namespace))) for one in rows]
            rows = []
            for one, outcome in outcomes:
                if outcome is None:
                    return None
                rows += spread(one, outcome, self._outdated[step.name]) if outcome.rows else []
        return rows

    def _rows(self, steps: Sequence[FlowStep], rows: list[Row], coming: _Coming, tallies: Mapping[str, Tally]) -> None:
        """Count rows and what follows from them."""
        if len(rows) > BATCH_ROWS:  # where one row became several
            for begin in range(0, len(rows), BATCH_ROWS):
                self._rows(steps, rows[begin : begin + BATCH_ROWS], coming, tallies)
            return
        for step in steps if rows else ():
            tally, following = tallies[step.name], self._children.get(step.name, [])
            tally.total += coming.rows * len(rows)
            views = step.views(rows)
            ledger = self._ledger_of(step.namespace)
            outcomes = [None] * len(rows) if coming.columns else replay_many(step, views, ledger, read=bool(following))
            tally.calls += coming.rows * sum(
                self._calls(step, view, coming.columns) for view, one in zip(views, outcomes, strict=True) if one is None
            )
            kept = [one for one in outcomes if one is not None]
            tally.cached += len(kept)
            tally.tokens += sum(one.tokens for one in kept)
            tally.rows_out += sum(len(one.rows) for one in kept)
            if following:
                self._follow(step, following, [*zip(rows, outcomes, strict=True)], coming, tallies)

    def _follow(
        self,
        step: FlowStep,
        following: Sequence[FlowStep],
        rows: Sequence[tuple[Row, Outcome | None]],
        coming: _Coming,
        tallies: Mapping[str, Tally],
    ) -> None:
        """Count what follows from a step's rows: from what the ledger has of them, and from what they are to become."""
        outdated = self._outdated[step.name]
        made = [new for row, one in rows if one is not None and one.rows for new in spread(row, one, outdated)]
        self._rows(following, made, coming, tallies)
        columns = coming.columns.union(self._written[step.name])
        to_come = _Coming(columns, coming.rows * self._made[step.name].rows)
        self._rows(following, [row for row, one in rows if one is None], to_come, tallies)

    def _calls(self, step: FlowStep, view: Row, coming: frozenset[str]) -> int:
        """Return the calls that a row takes at the most."""
        given = self._given[step.name]
        several = coming and given.answers > 1  # in a list that isn't there yet
        return step.operator.calls_expected(given) if several else step.operator.calls_for(view, coming)


if __name__ == "__main__":
    _serve()
