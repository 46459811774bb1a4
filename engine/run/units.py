"""What a worker process does: one unit of work per step; those of a chain of row steps are in flows.py.

Each unit is built by the runner and carried out where the cluster puts it. Knows the shapes of operators, none by name; knows
no Ray.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from caiflow.engine.health import Meter, Reading
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.gguf import unpack
from caiflow.engine.operator import (
    Job,
    MetricsOperator,
    ModelOperator,
    Operator,
    TableOperator,
)
from caiflow.engine.run.later import awaited, loading, tell_openings
from caiflow.engine.run.llms import LedgeredLLMs, Report, asked_beside, stop, watch_calls
from caiflow.engine.store.checkpoints import have_rest, steps_kept
from caiflow.engine.store.claims import forsake
from caiflow.engine.store.disk import finite
from caiflow.engine.training.operator import TrainingOperator

if TYPE_CHECKING:
    from caiflow.engine.llm.base import Link
    from caiflow.engine.llm.client import EngineClient
    from caiflow.engine.rows.folder import RowsWriter

TRAINERS = ("torch", "transformers", "datasets", "peft", "trl")
"""What a training imports, which takes seconds."""


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
    peaks: Mapping[str, int] = field(default_factory=dict)
    """The most memory that a process of its unit had, by the names in run.json."""
    gpus: float = 0.0
    """The GPUs that its unit had, its own and those of the engines that it asked."""

    def counted_with(self, others: Sequence[StepResult]) -> StepResult:
        """Return this with what other processes counted of the same step, too, and the most that any of them had."""
        counts, peaks = Counter(self.counts), dict(self.peaks)
        for other in others:
            counts.update(other.counts)
            peaks |= {name: max(most, peaks.get(name, 0)) for name, most in other.peaks.items()}
        return replace(self, counts=dict(counts), peaks=peaks, gpus=max(one.gpus for one in (self, *others)))


class Unit(Protocol):
    """What a worker can carry out: one of these, or anything else that pickles."""

    def run(self, report: Report) -> Mapping[str, StepResult]:
        """Carry it out; results by step."""


class StagingUnit(ABC):
    """A unit that writes into folders: the process of a lost attempt may yet write into those it had."""

    @abstractmethod
    def run(self, report: Report) -> Mapping[str, StepResult]:
        """Carry it out; results by step."""

    @abstractmethod
    def anew(self, attempt: int) -> Self:
        """Return it with new folders for its output."""

    def claims_in(self) -> Path | None:
        """Return the folder of the ledgers in which it claims what it asks; None where it asks nothing."""
        return None

    @property
    @abstractmethod
    def told(self) -> str:
        """What it is called to people."""

    @property
    def moves(self) -> bool:
        """Whether another process can go on from what this one has done: what it asked is kept as it goes."""
        return self.claims_in() is not None

    @property
    def reads_files(self) -> bool:
        """Whether it reads what no step made: files that may be on no other node than the command's own."""
        return False

    @property
    def modules(self) -> Sequence[str]:
        """What its processes import first, where that takes seconds."""
        return ()

    def lay_down(self) -> Callable[[], bool]:
        """Have what is done kept, and no more done; return what tells whether it is kept. For what `moves` alone."""
        return lambda: True

    def take_up(self, rests: bool) -> None:  # noqa: B027 - most never lay anything down
        """Have it go on again, unless it `rests` with all of the run."""


@dataclass(frozen=True, slots=True)
class _OneStep(StagingUnit):
    """The work of one step alone: `inputs` maps step names to the folders of their rows."""

    step: str
    operator: Operator[Any]
    inputs: Mapping[str, Path]
    models: Mapping[str, ModelSource]
    staged: Path

    @property
    def told(self) -> str:
        """The step's name."""
        return self.step

    @property
    def reads_files(self) -> bool:
        """Whether its operator names files or data sets."""
        return bool(self.operator.sources())

    def anew(self, attempt: int) -> Self:
        """Return it with a new folder."""
        return replace(self, staged=folder_anew(self.staged, attempt))

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
        from caiflow.engine.rows.columns import Columns
        from caiflow.engine.rows.folder import RowsWriter

        job = self._job(report)
        known = {name: Columns(dict(rows.columns)) for name, rows in job.inputs.items()}
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

    @property
    def moves(self) -> bool:
        """Whether it has checkpoints."""
        return isinstance(self.operator, TrainingOperator) and self.learnt is None

    @property
    def modules(self) -> Sequence[str]:
        """The trainers' libraries."""
        return TRAINERS if self.moves else ()

    def lay_down(self) -> Callable[[], bool]:
        """Have it rest behind a new checkpoint."""
        before = steps_kept(self.work_dir)

        def kept() -> bool:
            have_rest(self.work_dir, True)  # the end of a pause may have had it go on
            return steps_kept(self.work_dir) > before

        have_rest(self.work_dir, True)
        return kept

    def take_up(self, rests: bool) -> None:
        """Have it train on, unless it rests with all of the run."""
        have_rest(self.work_dir, rests)

    def claims_in(self) -> Path:
        """Return the folder of its ledgers."""
        return self.ledger_dir

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

    def claims_in(self) -> Path:
        """Return the folder of its ledgers."""
        return self.ledger_dir

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


def staged_anew(unit: Unit, attempt: int) -> Unit:
    """Return the unit with new folders for its output, where it has any; what its lost process claimed counts no more."""
    if not isinstance(unit, StagingUnit):
        return unit
    if ledgers := unit.claims_in():
        forsake(ledgers)
    return unit.anew(attempt)


def folder_anew(folder: Path, attempt: int) -> Path:
    """Return a new folder beside one of an earlier attempt, whose folders are removed."""
    for lost in (folder, folder.with_name(f"{folder.name}.{attempt - 1}")):
        shutil.rmtree(lost, ignore_errors=True)
    fresh = folder.with_name(f"{folder.name}.{attempt}")
    fresh.mkdir(parents=True)
    return fresh


def _readings(operator: Operator[Any], metrics: Mapping[str, Any], job: Job, **rows: int | None) -> dict[str, Reading]:
    """Return the readings of an operator whose measures go by its metrics."""
    return Meter(operator.all_measures()).readings({**metrics, **rows}, job.uids)


def _log(report: Report, step: str) -> Callable[..., None]:
    return lambda **fields: report({"step": step, **fields})
