"""What a worker process does: one unit of work per step, or per chain of row steps.

Each unit is built by the runner and carried out where the cluster puts it. Knows the four shapes of operators, none by name;
knows no Ray.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from caiflow.engine.health import Meter, Reading
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.gguf import unpack
from caiflow.engine.operator import (
    Job,
    MetricsOperator,
    ModelOperator,
    Operator,
    RowOperator,
    TableOperator,
)
from caiflow.engine.rows.columns import Row
from caiflow.engine.run.later import awaited, loading, tell_openings
from caiflow.engine.run.llms import OF_CALLS, LedgeredLLMs, Report, asked_beside, stop, tell_lost, watch_calls
from caiflow.engine.store.disk import finite
from caiflow.engine.training.operator import TrainingOperator

if TYPE_CHECKING:
    from caiflow.engine.flow.cutting import Cut
    from caiflow.engine.flow.outcomes import FlowStep
    from caiflow.engine.flow.sample import Sample
    from caiflow.engine.flow.stream import Flow
    from caiflow.engine.llm.client import EngineClient, Link
    from caiflow.engine.rows.folder import RowsWriter


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step in a worker: its staged folder and figures, or the error."""

    staged: Path | None = None
    rows_in: int | None = None
    rows_out: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)
    seconds: float | None = None
    """The step's share of the time of its chain; None where it had all the time to itself."""
    error: str = ""
    files: Mapping[str, int] = field(default_factory=dict)
    """The bytes of each staged file, as the worker's node sees them."""


@dataclass(frozen=True, slots=True)
class _OneStep:
    """The work of one step alone: `inputs` maps step names to the folders of their rows."""

    step: str
    operator: Operator[Any]
    inputs: Mapping[str, Path]
    models: Mapping[str, ModelSource]
    staged: Path

    def _job(self, report: Report, work_dir: Path = Path()) -> Job:
        from caiflow.engine.rows.folder import Rows

        for source in self.models.values():
            unpack(source)
        inputs = {name: Rows(path) for name, path in self.inputs.items()}
        seed, log = self.operator.context.seed, _log(report, self.step)
        return Job(self.staged, inputs, self.models, seed=seed, work_dir=work_dir, log=log, step=self.step)

    def _result(self, job: Job, metrics: Mapping[str, Any], out: RowsWriter | None = None) -> dict[str, StepResult]:
        """Return the result, with the rows of a table's writer."""
        rows_in = sum(rows.num_rows for rows in job.inputs.values()) if job.inputs or out is None else None
        if out is None:
            readings = _readings(self.operator, metrics, job, rows_in=rows_in)
            return {self.step: StepResult(self.staged, rows_in, None, metrics, readings=readings)}
        readings = _readings(self.operator, metrics, job, rows_in=rows_in, rows_out=out.num_rows)
        counts = {"dropped": out.num_dropped}
        return {self.step: StepResult(self.staged, rows_in, out.num_rows, metrics, counts, readings)}


@dataclass(frozen=True, slots=True)
class TableUnit(_OneStep):
    """One table operator."""

    operator: TableOperator[Any]

    def run(self, report: Report) -> dict[str, StepResult]:
        """Carry it out."""
        from caiflow.engine.rows.folder import RowsWriter

        job = self._job(report)
        known = {name: _columns(rows) for name, rows in job.inputs.items()}
        out = RowsWriter(self.staged, dict(self.operator.columns(known).types))
        self.operator.table(job, out)
        out.close()
        return self._result(job, {**job.metrics, **out.metrics}, out)


@dataclass(frozen=True, slots=True)
class TrainUnit(_OneStep):
    """One model operator, with links to the engines of the models that it asks; it trains unless it has `learnt` before."""

    operator: ModelOperator[Any]
    work_dir: Path
    links: Mapping[str, Sequence[Link]]
    ledger_dir: Path
    learnt: Path | None = None

    def run(self, report: Report) -> dict[str, StepResult]:
        """Carry it out."""
        job = self._job(report, self.work_dir)
        job.ledger_dir = self.ledger_dir
        counts: dict[str, int] = {}
        if self.links:
            with asked_beside(self.step, self._llms, self.links, report) as (job.llms, asked):
                self._train(job, report)
                counts = asked.counts()
        else:
            self._train(job, report)
        (result,) = self._result(job, dict(job.metrics)).values()
        return {self.step: replace(result, counts=counts)}

    def _train(self, job: Job, report: Report) -> None:
        if self.learnt and isinstance(self.operator, TrainingOperator):
            report({"step": self.step, "doing": "saving what was learnt before"})
            self.operator.save_again(job, self.learnt)
            return
        report({"step": self.step, "doing": "loading"})
        self.operator.train(job)

    def _llms(self, clients: Mapping[str, EngineClient]) -> LedgeredLLMs:
        asked = {name: self.models[name] for name in clients}
        return LedgeredLLMs(self.operator, asked, clients, self.ledger_dir)


@dataclass(frozen=True, slots=True)
class MeasureUnit(_OneStep):
    """One metrics operator, with links to the engines of the models it asks."""

    operator: MetricsOperator[Any]
    links: Mapping[str, Sequence[Link]]
    ledger_dir: Path

    def run(self, report: Report) -> dict[str, StepResult]:
        """Carry it out."""
        return asyncio.run(self._run(report))

    async def _run(self, report: Report) -> dict[str, StepResult]:
        from caiflow.engine.llm.client import EngineClient

        job = self._job(report)
        async with AsyncExitStack() as stack:
            if names := awaited(self.links):
                report({"step": self.step, "doing": f"waiting for {', '.join(names)}"})
            tell_openings(self.links, report)
            clients = {name: await stack.enter_async_context(EngineClient(links)) for name, links in self.links.items()}
            llms = LedgeredLLMs(self.operator, self.models, clients, self.ledger_dir)
            llms.pace.held = partial(loading, self.links)
            stack.callback(llms.close)
            stack.push_async_callback(stop, asyncio.create_task(watch_calls(self.step, llms, clients, report)))
            measured = await self.operator.measure(job, llms)
        text = json.dumps(finite(measured), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (self.staged / "metrics.json").write_text(text, encoding="utf-8")
        (result,) = self._result(job, {**job.metrics, **measured}).values()
        return {self.step: replace(result, counts=llms.counts())}


@dataclass(frozen=True, slots=True)
class FlowUnit:
    """A chain of row steps: `source` is the folder of the rows it starts from, `staged` a folder per step, `cut` its end."""

    steps: Sequence[FlowStep]
    source: Path
    links: Mapping[str, Sequence[Link]]
    staged: Mapping[str, Path]
    ledger_dir: Path
    cut: Cut | None = None

    def run(self, report: Report) -> dict[str, StepResult]:
        """Carry it out."""
        return asyncio.run(self._run(report))

    async def _run(self, report: Report) -> dict[str, StepResult]:
        from caiflow.engine.flow.stream import Flow
        from caiflow.engine.llm.client import EngineClient
        from caiflow.engine.rows.folder import Rows
        from caiflow.engine.store.ledger import Ledger

        source = Rows(self.source)
        async with AsyncExitStack() as stack:
            namespaces = {name for step in self.steps for name in step.ledgers}
            ledgers = {name: stack.enter_context(Ledger(self.ledger_dir, name)) for name in namespaces}
            for name in (name for name, ledger in ledgers.items() if ledger.damaged):
                said = "records in the ledger were damaged; what they held is made again"
                report({"event": "log", "text": f"{self.ledger_dir / name}: {said}"})
            for step in [step for step in self.steps if step.model in awaited(self.links)]:
                report({"step": step.name, "doing": f"waiting for {step.model}"})
            tell_openings(self.links, report)
            clients = {name: await stack.enter_async_context(EngineClient(links)) for name, links in self.links.items()}
            writers = self._writers(source)
            flow = Flow(self.steps, ledgers, clients, writers, cut=self.cut)
            flow.pace.held = partial(loading, self.links)
            stack.push_async_callback(stop, asyncio.create_task(_watch(flow, clients, report)))
            await flow.run(source)
            if self.cut and flow.cutting:
                report({"event": "log", "step": self.cut.step, "text": flow.cutting.summary()})
                report({"step": self.steps[-1].name, "note": flow.cutting.tried.told(flow.cutting.until)})
        return {step.name: self._result(step, flow, writers[step.name]) for step in self.steps}

    def _writers(self, source: Any) -> dict[str, RowsWriter]:
        from caiflow.engine.rows.folder import RowsWriter

        known = {"": _columns(source)}
        writers = {}
        for step in self.steps:
            given = known.get(step.source, known[""])
            known[step.name] = step.operator.columns({step.source: given})
            writers[step.name] = RowsWriter(self.staged[step.name], dict(known[step.name].types))
        return writers

    def _result(self, step: FlowStep, flow: Flow, writer: RowsWriter) -> StepResult:
        tally, seconds = flow.tallies[step.name], round(flow.pace.busy_s(step.name), 3)
        counts = {name: getattr(tally, name) for name in ("done", "cached", "dropped", "failed", "may_pass", *OF_CALLS)}
        if tally.error:
            return StepResult(None, tally.total, None, {}, counts, seconds=seconds, error=tally.error)
        writer.close()
        metrics: dict[str, Any] = {"dropped_by": dict(tally.drop_reasons)} if tally.drop_reasons else {}
        metrics |= _row_metrics(step.operator, self.staged[step.name], tally.drop_reasons)
        figures = {**metrics, "rows_in": tally.total, "rows_out": tally.rows_out}
        if why := step.operator.failure(figures, tally.said):
            return StepResult(None, tally.total, None, {}, counts, seconds=seconds, error=why)
        readings = flow.meters[step.name].readings(figures)
        return StepResult(self.staged[step.name], tally.total, tally.rows_out, metrics, counts, readings, seconds)


class Unit(Protocol):
    """What a worker can carry out: one of the above, or anything else that pickles."""

    def run(self, report: Report) -> Mapping[str, StepResult]:
        """Carry it out; results by step."""


def staged_anew(unit: Unit, attempt: int) -> Unit:
    """Return the unit with new folders for its output: the process of a lost attempt may yet write into those it had."""
    if isinstance(unit, FlowUnit):
        return replace(unit, staged={name: _folder_anew(folder, attempt) for name, folder in unit.staged.items()})
    return replace(unit, staged=_folder_anew(unit.staged, attempt)) if isinstance(unit, _OneStep) else unit


def _folder_anew(folder: Path, attempt: int) -> Path:
    for lost in (folder, folder.with_name(f"{folder.name}.{attempt - 1}")):
        shutil.rmtree(lost, ignore_errors=True)
    fresh = folder.with_name(f"{folder.name}.{attempt}")
    fresh.mkdir(parents=True)
    return fresh


def _readings(operator: Operator[Any], metrics: Mapping[str, Any], job: Job, **rows: int | None) -> dict[str, Reading]:
    """Return the readings of an operator whose measures go by its metrics."""
    return Meter(operator.all_measures()).readings({**metrics, **rows}, job.uids)


def _row_metrics(operator: RowOperator[Any], folder: Path, dropped: Mapping[str, int]) -> dict[str, Any]:
    """Return what the operator makes of its finished rows, read back in batches."""
    from caiflow.engine.rows.folder import Rows

    if type(operator).metrics is RowOperator.metrics:
        return {}

    def rows() -> Iterator[Row]:
        for batch in Rows(folder).batches():
            yield from batch.to_pylist()

    return dict(operator.metrics(rows(), dropped))


async def _watch(flow: Flow, clients: Mapping[str, EngineClient], report: Report) -> None:
    shown: dict[str, Sample] = {}
    while True:
        tell_lost(clients, report)
        for name, fields in flow.progress().items():
            latest = flow.tallies[name].sample
            report({"step": name, **fields})
            if latest.made and shown.get(name) != latest:
                shown[name] = latest
                report({"event": "sample", "step": name, **asdict(latest)})
        await asyncio.sleep(0.25)


def _columns(rows: Any) -> Any:
    from caiflow.engine.rows.columns import Columns

    return Columns(dict(rows.columns))


def _log(report: Report, step: str) -> Callable[..., None]:
    return lambda **fields: report({"step": step, **fields})
