"""A chain's flow in a worker: over all rows of its source, or over a shard of them, and the shards joined in order.

What a flow makes of rows can be joined, and the verdict on a step is given on the whole: nothing of it depends on the shards.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.row_llm import Tally
from caiflow.engine.health import Meter, Sum
from caiflow.engine.operator import RowOperator
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.gathering import Gathering, seen
from caiflow.engine.run.later import awaited, loading, tell_openings
from caiflow.engine.run.llms import OF_CALLS, Report, stop, tell_lost
from caiflow.engine.run.units import StagingUnit, StepResult, folder_anew

if TYPE_CHECKING:
    from caiflow.engine.flow.cutting import Cut
    from caiflow.engine.flow.sample import Sample
    from caiflow.engine.flow.stream import Flow
    from caiflow.engine.llm.base import Link
    from caiflow.engine.llm.client import EngineClient
    from caiflow.engine.rows.folder import Rows, RowsWriter

_COUNTED = ("done", "cached", "dropped", "failed", "may_pass", *OF_CALLS)
_GROUP_ROWS = 16384


@dataclass(frozen=True, slots=True)
class Made(StepResult):
    """What a flow made of some rows at one step: their folder, none where it failed, and what a verdict is given on."""

    tally: Tally = field(default_factory=Tally)
    sums: Mapping[str, Sum] = field(default_factory=dict)
    gathered: tuple[Gathering, ...] = ()
    """What its operator's figures are made of, of each lot of rows."""

    def join(self, later: Made) -> Made:
        """Return the same of these rows and of `later` ones together, but for the folders."""
        sums = {name: total.join(later.sums[name]) for name, total in self.sums.items()}
        seconds = max(self.seconds or 0.0, later.seconds or 0.0)  # side by side
        gathered = self.gathered + later.gathered
        return Made(tally=self.tally.join(later.tally), sums=sums, gathered=gathered, seconds=seconds)


@dataclass(frozen=True, slots=True)
class FlowUnit(StagingUnit):
    """A chain of row steps: `source` is the folder of the rows it starts from, `staged` a folder per step, `cut` its end."""

    steps: Sequence[FlowStep]
    source: Path
    links: Mapping[str, Sequence[Link]]
    staged: Mapping[str, Path]
    ledger_dir: Path
    cut: Cut | None = None

    @property
    def told(self) -> str:
        """Its steps' names."""
        return ", ".join(step.name for step in self.steps)

    @property
    def num_rows(self) -> int:
        """The rows of its source."""
        from caiflow.engine.rows.folder import Rows

        return Rows(self.source).num_rows

    def run(self, report: Report) -> dict[str, StepResult]:
        """Carry it out."""
        made = asyncio.run(self.stream(report))
        return {step.name: self.settled(step, made[step.name]) for step in self.steps}

    def anew(self, attempt: int) -> Self:
        """Return it with new folders."""
        return replace(self, staged={name: folder_anew(folder, attempt) for name, folder in self.staged.items()})

    def claims_in(self) -> Path:
        """Return the folder of its ledgers."""
        return self.ledger_dir

    async def stream(self, report: Report, shard: Shard | None = None) -> dict[str, Made]:
        """Have the rows of the source, or of a shard, flow through the chain."""
        from caiflow.engine.flow.stream import Flow
        from caiflow.engine.llm.client import EngineClient
        from caiflow.engine.rows.folder import Rows
        from caiflow.engine.store.ledger import Ledger

        source = Rows(self.source)
        async with AsyncExitStack() as stack:
            namespaces = {name for step in self.steps for name in step.ledgers}
            apart = f"{shard.group}-{shard.number}" if shard else ""
            ledgers = {name: stack.enter_context(Ledger(self.ledger_dir, name, apart)) for name in namespaces}
            for name in (name for name, ledger in ledgers.items() if ledger.damaged):
                said = "records in the ledger were damaged; what they held is made again"
                report({"event": "log", "text": f"{self.ledger_dir / name}: {said}"})
            for step in self.steps:
                if names := [name for name in step.clients if name in awaited(self.links)]:
                    report({"step": step.name, "doing": f"waiting for {' and '.join(names)}"})
            tell_openings(self.links, report)
            clients = {name: await stack.enter_async_context(EngineClient(links)) for name, links in self.links.items()}
            writers = self.writers(source)
            flow = Flow(self.steps, ledgers, clients, writers, shards=shard.of if shard else 1, cut=self.cut)
            flow.pace.held = partial(loading, self.links)
            stack.push_async_callback(stop, asyncio.create_task(_watch(flow, clients, report, shard)))
            if shard is None:
                await flow.run(source)
            else:
                shard.agree(flow)
                await flow.run(source, shard.rows)
                shard.agree(flow)
            if self.cut and flow.cutting:
                report({"event": "log", "step": self.cut.step, "text": flow.cutting.summary()})
                report({"step": self.steps[-1].name, "note": flow.cutting.tried.told(flow.cutting.until)})
        return {step.name: self._made(step, flow, writers[step.name]) for step in self.steps}

    def writers(self, source: Rows) -> dict[str, RowsWriter]:
        """Return what writes each step's rows into its folder."""
        from caiflow.engine.rows.columns import Columns
        from caiflow.engine.rows.folder import RowsWriter

        known = {"": Columns(dict(source.columns))}
        writers = {}
        for step in self.steps:
            given = known.get(step.source, known[""])
            known[step.name] = step.operator.columns({step.source: given})
            writers[step.name] = RowsWriter(self.staged[step.name], dict(known[step.name].types))
        return writers

    def settled(self, step: FlowStep, made: Made) -> StepResult:
        """Return the verdict on a step, given what was made of all rows; they lie in its folder unless it failed."""
        tally = made.tally
        counts = {name: getattr(tally, name) for name in _COUNTED}
        failed = partial(StepResult, None, tally.total, None, {}, counts, seconds=made.seconds)
        if tally.error:
            return failed(error=tally.error)
        metrics: dict[str, Any] = {"dropped_by": dict(tally.drop_reasons)} if tally.drop_reasons else {}
        metrics |= _row_metrics(step.operator, made.gathered, self.staged[step.name], tally.drop_reasons)
        figures = {**metrics, "rows_in": tally.total, "rows_out": tally.rows_out}
        if why := step.operator.failure(figures, tally.said):
            return failed(error=why)
        readings = Meter(step.operator.all_measures(), made.sums).readings(figures)
        return StepResult(self.staged[step.name], tally.total, tally.rows_out, metrics, counts, readings, made.seconds)

    def _made(self, step: FlowStep, flow: Flow, writer: RowsWriter) -> Made:
        name = step.name
        seconds, tally, sums = round(flow.pace.busy_s(name), 3), flow.tallies[name], flow.meters[name].sums
        if name in flow.failed:
            return Made(seconds=seconds, tally=tally, sums=sums)
        writer.close()
        gathering = step.operator.gathering()
        gathered = () if gathering is None else (seen(gathering, _rows(self.staged[name])),)
        return Made(self.staged[name], seconds=seconds, tally=tally, sums=sums, gathered=gathered)


@dataclass(frozen=True, slots=True)
class Shard(StagingUnit):
    """The `number`-th of so many shards of a flow: the rows at some places of its source. `flow` has links of its own."""

    flow: FlowUnit
    number: int
    of: int
    rows: range
    group: str
    """What all shards of the flow have in common, and no others."""
    attempt: int = 1

    def run(self, report: Report) -> dict[str, Made]:
        """Carry it out; what it tells names the shard."""

        def told(event: dict[str, Any]) -> None:
            report({**event, "shard": self.number})

        return asyncio.run(replace(self.flow, staged=self.staged).stream(told, self))

    def anew(self, attempt: int) -> Self:
        """Return it with new folders."""
        self.clean()
        return replace(self, attempt=attempt)

    def claims_in(self) -> Path:
        """Return the folder of its ledgers."""
        return self.flow.ledger_dir

    @property
    def told(self) -> str:
        """Its flow, and which part of it."""
        return f"{self.flow.told} (shard {self.number + 1} of {self.of})"

    @property
    def staged(self) -> dict[str, Path]:
        """The folder of each step's rows, beside that of all shards together."""
        end = f".shard-{self.number}.{self.attempt}"
        return {name: folder.with_name(folder.name + end) for name, folder in self.flow.staged.items()}

    def agree(self, flow: Flow) -> None:
        """Give up what another shard has given up, and have the others give up what failed here."""
        give_up(self.flow, {name: flow.tallies[name].error for name in flow.failed})
        flow.failed.update(step.name for step in flow.steps if _mark(self.flow, step.name).exists())

    def clean(self) -> None:
        """Remove what it wrote, in any attempt."""
        for folder in self.flow.staged.values():
            for written in folder.parent.glob(f"{folder.name}.shard-{self.number}.*"):
                shutil.rmtree(written, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Joining(StagingUnit):
    """Makes one of what a flow's shards made at a step: `parts`, in the order of their rows."""

    flow: FlowUnit
    step: FlowStep
    parts: Sequence[Made]

    @property
    def told(self) -> str:
        """Its step, joined."""
        return f"{self.step.name} (joining {len(self.parts)} shards)"

    def run(self, report: Report) -> dict[str, StepResult]:
        """Carry it out."""
        from caiflow.engine.rows.folder import Rows

        report({"step": self.step.name, "doing": f"joining {len(self.parts)} shards"})
        made = reduce(Made.join, self.parts)
        if made.tally.failed > self.step.max_failed:  # each shard may have had fewer
            made.tally.error = made.tally.failure
        if any(part.staged is None for part in self.parts):  # one whose process was lost since may not say why
            made.tally.error = made.tally.error or _mark(self.flow, self.step.name).read_text(encoding="utf-8")
        if not made.tally.error:
            with self.flow.writers(Rows(self.flow.source))[self.step.name] as writer:
                for part in self.parts:
                    assert part.staged is not None, self.step.name
                    _append(part.staged, writer)
        return {self.step.name: self.flow.settled(self.step, made)}

    def anew(self, attempt: int) -> Self:
        """Return it with a new folder for its step; those of the others are others' work."""
        folder = folder_anew(self.flow.staged[self.step.name], attempt)
        return replace(self, flow=replace(self.flow, staged={**self.flow.staged, self.step.name: folder}))


def give_up(flow: FlowUnit, steps: Mapping[str, str]) -> None:
    """Have all shards of a flow leave these steps alone from now on, each for a reason: what they would make is of no use."""
    for name, why in steps.items():
        with suppress(FileExistsError), _mark(flow, name).open("x", encoding="utf-8") as mark:
            mark.write(why)


def take_up(flow: FlowUnit) -> None:
    """Have none of a flow's steps given up."""
    for step in flow.steps:
        _mark(flow, step.name).unlink(missing_ok=True)


def _mark(flow: FlowUnit, step: str) -> Path:
    folder = flow.staged[step]
    return folder.with_name(folder.name + ".failed")


def _append(folder: Path, writer: RowsWriter) -> None:
    """Append a folder's rows, and those left out; one without rows still says of which types they would be."""
    from caiflow.engine.rows.folder import Rows

    rows = Rows(folder)
    if not rows.num_rows:
        writer.write(rows.schema.empty_table())
    for batch in rows.batches(_GROUP_ROWS):
        writer.write(batch)
    for batch in rows.dropped().batches(_GROUP_ROWS):
        writer.append_dropped(batch)


def _row_metrics(
    operator: RowOperator[Any], gathered: Sequence[Gathering], folder: Path, dropped: Mapping[str, int]
) -> Mapping[str, Any]:
    """Return what the operator makes of its finished rows: of what was gathered of them, else of them all."""
    if type(operator).metrics is not RowOperator.metrics:
        return operator.metrics(_rows(folder), dropped)
    if (whole := operator.gathering()) is None:
        return {}
    for part in gathered:
        whole.join(part)
    return whole.figures()


def _rows(folder: Path) -> Iterator[Row]:
    """Yield a folder's rows, read back in batches."""
    from caiflow.engine.rows.folder import Rows

    for batch in Rows(folder).batches():
        yield from batch.to_pylist()


async def _watch(flow: Flow, clients: Mapping[str, EngineClient], report: Report, shard: Shard | None) -> None:
    """Report progress until cancelled, and have a shard agree with the others."""
    shown: dict[str, Sample] = {}
    while True:
        tell_lost(clients, report)
        for name, fields in flow.progress().items():
            latest = flow.tallies[name].sample
            report({"step": name, **fields})
            if latest.made and shown.get(name) != latest:
                shown[name] = latest
                report({"event": "sample", "step": name, **asdict(latest)})
        if shard is not None:
            shard.agree(flow)
        await asyncio.sleep(0.25)
