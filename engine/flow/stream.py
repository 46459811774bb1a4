"""Rows streaming through a chain of row operators: each row a coroutine, each result in the ledger as it finishes.

Owns retries and the order in which finished rows are written; keys and replays are in outcomes.py. Knows no Ray, no engine
library, and no operator by name.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import AskAnewError, EngineError, StoreError, suggest
from caiflow.engine.flow.batches import Changed, rows_to_batch
from caiflow.engine.flow.claiming import claimed
from caiflow.engine.flow.collecting import seldom_collected
from caiflow.engine.flow.cutting import Cut, Cutting
from caiflow.engine.flow.outcomes import FlowStep, Outcome, replay, spread
from caiflow.engine.flow.pace import Pace
from caiflow.engine.flow.row_llm import LedgeredLLM, NoLLM, Tally, seen_by_row
from caiflow.engine.flow.sample import sample
from caiflow.engine.flow.slots import Slots
from caiflow.engine.flow.unread import READ
from caiflow.engine.health import Meter, Passed
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.operator import RowDropped
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1024
_TOLD_AFTER_S = 5.0
SET_ASIDE = "; rows that fail for good are set aside with `max_failed`, up to that many"
Order = tuple[int, ...]
BATCHED = "batched"
"""The kind of a call that waits for the answers of a batch."""
PASSING_FAILURES = frozenset({"timeout", "refused", "engine_lost", "spending_cap", "engine", "other_model", BATCHED})
"""Classes of failure that another run may not meet, beside all that are worth a retry: they leave no tombstone."""


class _OpenBatch:
    """One batch of source rows on its way through the chain: collects each step's outcomes until all have come."""

    def __init__(self, number: int, start: int, table: pa.RecordBatch, steps: Sequence[FlowStep]) -> None:
        self.number = number
        self.start = start
        self.table = table
        self.kept: dict[str, list[tuple[Order, Row]]] = {step.name: [] for step in steps}
        self.lost: dict[str, list[tuple[Order, Row, str]]] = {step.name: [] for step in steps}
        self.open_rows = table.num_rows


class Flow:
    """Streams the rows of one table through a tree of row steps.

    `steps` come in topological order; the first one's `source` is the table given to `run`, as may be that of others. With a
    `cut` they are one behind the other, and end where enough rows passed. One of several `shards` has its part of the rows that
    may be on their way at once.
    """

    def __init__(
        self,
        steps: Sequence[FlowStep],
        ledgers: Mapping[str, Ledger],
        clients: Mapping[str, EngineClient],
        writers: Mapping[str, RowsWriter],
        *,
        shards: int = 1,
        cut: Cut | None = None,
    ) -> None:
        self.cutting: Cutting | None = None
        self._cut = cut
        self.steps = list(steps)
        self.tallies = {step.name: Tally() for step in steps}
        self.meters = {step.name: Meter(step.operator.all_measures()) for step in steps}
        self.pace = Pace(self.tallies)
        self._ledgers = ledgers
        self._clients = clients
        self._writers = writers
        names = {step.name for step in steps}
        self._roots = [step for step in steps if step.source not in names]
        self._children = {name: [s for s in steps if s.source == name] for name in names}
        capacity = max((client.capacity for client in clients.values()), default=64)
        asked = max((getattr(step.params, "concurrency", 0) for step in steps), default=0)
        self._limit = max(1, (asked or 2 * capacity) // shards)
        self._slots = Slots(self._limit)
        self._more = {
            step.name: step.operator.calls() - 1 + self._to_come(step, clients.get(step.model or "")) for step in steps
        }
        self.failed: set[str] = set()
        """Steps that rows are kept from, since too many failed; whoever knows of more may add them."""
        self._awaited: dict[str, list[float]] = {step.name: [] for step in steps}
        """When each of the rows began to wait that another run is making."""
        self._outdated = {step.name: step.operator.outdates() for step in steps}
        self._written = {step.name: step.operator.writes() for step in steps}
        self._changes = {"": Changed()}
        for step in steps:
            self._changes[step.name] = self._changes.get(step.source, Changed()).by(step.operator)

    async def run(self, source: Rows, rows: range | None = None) -> dict[str, Tally]:
        """Stream the rows at these places, or all; what each step wrote is in its writer then, in the order of the source."""
        for root in self._roots:
            self.tallies[root.name].total = source.num_rows if rows is None else len(rows)
        if self._cut is not None:
            self.cutting = Cutting(self._cut, source.num_rows, self._changes[self.steps[-1].name])
        window = max(4, 2 + -(-2 * self._limit // BATCH_ROWS))
        with seldom_collected():
            await self._stream(source, rows, window)
        return self.tallies

    async def _stream(self, source: Rows, rows: range | None, window: int) -> None:
        open_batches: list[_OpenBatch] = []
        start = 0 if rows is None else rows.start
        tables = source.batches(BATCH_ROWS) if rows is None else source.batches_at(rows, BATCH_ROWS)
        async with self._slots as slots:
            for number, table in enumerate(tables):
                batch = _OpenBatch(number, start, table, self.steps)
                open_batches.append(batch)
                start += table.num_rows
                async for index, row in _paced(table.to_pylist()):
                    if self.cutting is not None and not await self._begins(batch, index):
                        break
                    await slots.start(self._whole_row(batch, (index,), row))
                    self._write_finished(open_batches)
                if self.cutting is not None and self.cutting.end is not None:
                    break
                while len(open_batches) >= window:
                    await slots.one_finished()
                    self._write_finished(open_batches)
            await slots.all_finished()
            if self.cutting is not None:
                self._end(self.cutting, open_batches)
            self._write_finished(open_batches)

    async def _begins(self, batch: _OpenBatch, index: int) -> bool:
        """Wait until a row may begin, and let it; return False where none does any more."""
        assert self.cutting is not None
        cutting, place = self.cutting, batch.start + index
        while not cutting.may_begin(place):
            cutting.judge()
            if self.failed or place >= cutting.most or cutting.comes_to_rest:
                await self._slots.all_finished()
                cutting.stop()
            if cutting.end is not None:
                return False
            if not cutting.may_begin(place):
                await self._slots.one_finished()
        if self.failed:
            cutting.stop()
            return False
        cutting.begin(place, batch.table)
        return True

    def _end(self, cutting: Cutting, open_batches: Sequence[_OpenBatch]) -> None:
        """Leave out the rows behind the end."""
        cutting.stop()
        self.tallies[self.steps[0].name].total = cutting.end or 0
        for batch in open_batches:
            batch.open_rows = 0

    def progress(self) -> dict[str, dict[str, Any]]:
        """Return the fields of each step's `step_progress` event; `total` counts the rows that may still come to the step."""
        waiting: dict[str, int] = {}
        found = {}
        if self.cutting is not None:
            self.tallies[self.steps[0].name].total = self.cutting.expected()
        for step in self.steps:
            tally = self.tallies[step.name]
            waiting[step.name] = tally.total + waiting.get(step.source, 0) - tally.finished()
            found[step.name] = {**progress_fields(tally), "total": tally.finished() + waiting[step.name]}
        for name, fields in found.items():
            fields |= {"busy_s": (busy_s := self.pace.busy_s(name)), "left_s": self.pace.left_s(name, waiting)}
            fields |= {"waiting": self._waiting(name) or None}
            fields |= {"tokens_per_second": fields["completion_tokens"] / busy_s if busy_s else None}
        if self.cutting is not None:
            found[self.steps[-1].name]["note"] = self.cutting.tried.told(self.cutting.until)
        return found

    def _waiting(self, name: str) -> str:
        """Return whom a step has long been waiting for, and how long; nothing while it gets on."""
        step = next(step for step in self.steps if step.name == name)
        awaited = self._awaited[name]
        told = " and ".join(filter(None, (self._clients[asked].waiting for asked in step.clients if asked in self._clients)))
        if awaited and (waited_s := time.monotonic() - awaited[0]) >= _TOLD_AFTER_S:
            told = told or f"{len(awaited)} rows that another run is making, for {waited_s:.0f} s"
        return told

    def _to_come(self, step: FlowStep, client: EngineClient | None) -> int:
        """Return how many calls a row makes of one model after a step, at the most, on any one way through the others."""
        following = [0]
        for child in self._children[step.name]:
            own = child.operator.calls() if self._clients.get(child.model or "") is client else 0
            following.append(own + self._to_come(child, client))
        return max(following)

    @contextmanager
    def _awaiting(self, step: FlowStep) -> Iterator[None]:
        """Note that a row of a step waits for another run, and lend its place."""
        since = time.monotonic()
        self._awaited[step.name].append(since)
        try:
            with self._slots.lent():
                yield
        finally:
            self._awaited[step.name].remove(since)

    async def _whole_row(self, batch: _OpenBatch, order: Order, row: Row) -> None:
        try:
            await self._branch(self._roots, batch, order, row)
        finally:
            if self.cutting is not None:
                self.cutting.over(batch.start + order[0], partial(self._close_row, batch))
            else:
                self._close_row(batch)
            for client in self._clients.values():
                client.over(batch.number * BATCH_ROWS + order[0])

    def _close_row(self, batch: _OpenBatch) -> None:
        batch.open_rows -= 1

    async def _branch(self, steps: Sequence[FlowStep], batch: _OpenBatch, order: Order, row: Row) -> None:
        if len(steps) == 1:
            await self._through(steps[0], batch, order, row)
        elif steps:
            await asyncio.gather(*(self._through(step, batch, order, row) for step in steps))

    async def _through(self, step: FlowStep, batch: _OpenBatch, order: Order, row: Row) -> None:
        if step.name in self.failed or (self.cutting is not None and self.cutting.beyond(batch.start + order[0])):
            return
        self.pace.begin(step.name)
        outcome = await self._outcome(step, row, batch.number * BATCH_ROWS + order[0])
        self.pace.end(step.name, computed=not outcome.cached)
        rows = spread(row, outcome, self._outdated[step.name]) if outcome.rows else []
        made = [((*order, i), new) for i, new in enumerate(rows)]
        note = partial(self._note, step, batch, order, row, outcome, made)
        if self.cutting is not None:
            self.cutting.hold(batch.start + order[0], note, made if step is self.steps[-1] else ())
            if outcome.failed.startswith(f"{BATCHED}:"):
                self.cutting.put_off(batch.start + order[0])
        else:
            note()
        children = self._children[step.name]
        following = [self._branch(children, batch, place, new) for place, new in made] if children else []
        if len(following) == 1:
            await following[0]
        elif following:
            await asyncio.gather(*following)

    def _note(
        self, step: FlowStep, batch: _OpenBatch, order: Order, row: Row, outcome: Outcome, made: Sequence[tuple[Order, Row]]
    ) -> None:
        """Count what became of a row at a step, and keep it for the step's output."""
        self._count(step, row, outcome)
        if not outcome.failed:
            passed = Passed([new for _, new in made], outcome.dropped)
            self.meters[step.name].add((batch.start + order[0], *order[1:]), str(row["uid"]), passed)
        if outcome.dropped or outcome.failed:
            batch.lost[step.name].append((order, row, outcome.dropped or f"failed: {outcome.failed}"))
        batch.kept[step.name] += made
        for child in self._children[step.name]:
            self.tallies[child.name].total += len(made)

    async def _outcome(self, step: FlowStep, row: Row, turn: int) -> Outcome:
        view = step.view(row)
        row_key = step.row_key(view)
        ledger = self._ledgers[step.namespace]
        known, idle = partial(replay, step, row_key, ledger), partial(self._awaiting, step)
        async with claimed(ledger, row_key, known, idle) as made:
            if made is not None:
                return made
            return await self._ask(step, view, row_key, self._llm(step, view["uid"], turn))

    async def _ask(self, step: FlowStep, view: Row, row_key: bytes, llm: LedgeredLLM | NoLLM) -> Outcome:
        ledger = self._ledgers[step.namespace]
        mark = READ if step.by_servers else {}
        try:
            given = await step.operator.row(view, llm)
        except RowDropped as drop:
            ledger.append(row_key, {"dropped": str(drop), **({"said": drop.said} if drop.said else {}), **mark})
            return Outcome(dropped=str(drop), said=drop.said)
        except (AskAnewError, StoreError):  # a disk that takes no more answers is no row's failure either
            raise
        except EngineError as error:
            if error.kind == "load":  # there is no model to ask: that is no row's failure
                raise
            passing = error.retry or error.kind in PASSING_FAILURES
            return self._failure(row_key, ledger, f"{error.kind}: {error}", passing=passing)
        except Exception as error:
            return Outcome(failed=f"{type(error).__name__}: {error}", may_pass=True, trace=traceback.format_exc())
        rows = tuple(given) if isinstance(given, list) else (given,)
        if wrong := _wrong_columns(rows, self._written[step.name]):
            wrong = f"the operator {step.operator.name} returned {wrong}"
            return self._failure(row_key, ledger, wrong, passing=True)
        ledger.append(row_key, {"out": rows, "tokens": llm.tokens, **mark})
        return Outcome(rows=rows)

    def _failure(self, row_key: bytes, ledger: Ledger, reason: str, *, passing: bool) -> Outcome:
        if not passing:
            ledger.append(row_key, {"failed": reason})
        return Outcome(failed=reason, may_pass=passing)

    def _llm(self, step: FlowStep, uid: str, turn: int) -> LedgeredLLM | NoLLM:
        """Return the model as a row sees it. Older rows have their turn first: what their calls share is still in a cache."""
        if step.model not in self._clients:
            return NoLLM(step.name)
        of_calls = self._ledgers[step.namespace] if step.operator.calls() > 1 else None
        ledgers, tally, more = (of_calls, self._ledgers.get(step.sampled)), self.tallies[step.name], self._more[step.name]
        return seen_by_row(step, self._clients, uid, tally, ledgers, turn=turn, more=more)

    def _count(self, step: FlowStep, row: Row, outcome: Outcome) -> None:
        tally = self.tallies[step.name]
        if outcome.dropped:
            tally.dropped += 1
            tally.drop_reasons[outcome.dropped] += 1
            tally.said = tally.said or outcome.said
        elif outcome.failed:
            tally.failed += 1
            tally.may_pass += outcome.may_pass
            aside = "" if outcome.may_pass else SET_ASIDE
            tally.failure = tally.failure or f"row {row['uid']}: {outcome.failed}{aside}\n{outcome.trace}".rstrip()
            if tally.failed > step.max_failed:
                tally.error = tally.failure
                self.failed.add(step.name)
        else:
            tally.rows_out += len(outcome.rows)
            if outcome.cached:
                tally.cached += 1
            else:
                tally.done += 1
                tally.sample = sample(step.view(row), outcome.rows)

    def _write_finished(self, open_batches: list[_OpenBatch]) -> None:
        while open_batches and open_batches[0].open_rows == 0:
            batch = open_batches.pop(0)
            for step in self.steps:
                if step.name in self.failed:
                    continue
                writer = self._writers[step.name]
                kept = sorted(batch.kept[step.name], key=lambda pair: pair[0])
                rows = [(place[0], row) for place, row in kept]
                writer.write(rows_to_batch(batch.table, rows, self._changes[step.name]))
                lost = sorted(batch.lost[step.name], key=lambda entry: entry[0])
                if lost:
                    before = self._changes.get(step.source, Changed())
                    table = rows_to_batch(batch.table, [(place[0], row) for place, row, _ in lost], before)
                    writer.drop(table, [reason for *_, reason in lost])


def progress_fields(tally: Tally) -> dict[str, Any]:
    """Return the counts of a `step_progress` event; `done` are the rows that need no more work, whatever became of them."""
    fields = ("total", "cached", "dropped", "failed", "calls", "prompt_tokens", "completion_tokens")
    return {"done": tally.finished(), **{name: getattr(tally, name) for name in fields}}


async def _paced(rows: Sequence[Row]) -> AsyncIterator[tuple[int, Row]]:
    """Yield rows with their index, letting finished answers be handled now and then."""
    for index, row in enumerate(rows):
        if index % 64 == 63:
            await asyncio.sleep(0)
        yield index, row


def _wrong_columns(rows: Sequence[Any], known: Mapping[str, Any]) -> str:
    """Return what is wrong with what an operator returned for a row, given the columns it writes; nothing where it is right."""
    for row in rows:
        if not isinstance(row, Mapping):
            return f"{type(row).__name__}; return a dict of its columns, or a list of them"
        unknown = [name for name in row if name not in known]
        if unknown:
            return f"`{unknown[0]}`, which `writes()` doesn't name; {suggest(unknown[0], known, 'columns it writes')}"
    return ""
