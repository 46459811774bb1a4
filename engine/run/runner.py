"""Carrying out a plan: each step when its inputs are made, side by side where there is room, until all have settled.

Owns the order of work, the fate of steps behind a failed one, and what a run leaves in its folder. Knows the four shapes of
operators, none by name; Ray is the cluster's business and starts with the first step that isn't in the store.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import CaiflowError, PlanError, StepError
from caiflow.engine.identity import digest
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import MetricsOperator, ModelOperator, RowOperator
from caiflow.engine.plan.components import COMPONENTS, TEXTS, Components, Resolver
from caiflow.engine.plan.lock import LOCK, compare_locks, grade, make_lock, read_lock, refuse_drift, write_lock
from caiflow.engine.plan.relocate import portable
from caiflow.engine.registry import operator as operator_type
from caiflow.engine.spec.graph import chosen
from caiflow.engine.store.artifacts import Artifact, Store
from caiflow.engine.store.disk import write_atomic
from caiflow.engine.store.journal import Event, Journal

if TYPE_CHECKING:
    from caiflow.engine.run.cluster import Cluster, Finished
    from caiflow.engine.run.units import StepResult, StepWork, Unit
    from caiflow.engine.spec.grammar import Spec, Step

POLL_S = 0.25
SETTLED = frozenset({"done", "cached", "failed", "skipped"})
TRAINERS = ("torch", "transformers", "datasets", "peft", "trl")
"""What a training worker imports while the first rows are generated."""
ENGINES = ("torch", "transformers", "caiflow.engine.llm.local.transformers")
"""What a spare engine process imports before its model is trained."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended; `exit_code` is the command's."""

    status: str
    exit_code: int
    run_dir: Path


def run(
    spec: Spec,
    store: Store,
    out_dir: Path,
    *,
    only: str | None = None,
    until: str | None = None,
    address: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    trust_remote_code: bool = False,
    locked: Path | None = None,
) -> RunResult:
    """Carry out a spec and leave the run's folder behind; SIGINT and SIGTERM stop it within seconds.

    `locked` names a lock that the run must not differ from.

    Raises:
        PlanError: a model can't be found, something differs from the lock, or the cluster is short of what the spec asks for.
        StoreError: the store can't be written.
    """
    wanted = chosen(spec, only or until)
    resolver = Resolver(spec, store, trust_remote_code=trust_remote_code)
    if locked is not None:
        refuse_drift(read_lock(locked), make_lock(resolver), locked)
    with Journal(out_dir, on_event) as journal, _interruptible() as interrupted:
        execution = _Execution(resolver, out_dir, journal, wanted, address, interrupted, only)
        try:
            status = execution.run()
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            execution.close()
        _lock(resolver, out_dir, journal)
        journal.emit("run_done", status=status)
    return RunResult(status, {"done": 0, "failed": 1, "interrupted": 130}[status], out_dir)


def _lock(resolver: Resolver, out_dir: Path, journal: Journal) -> None:
    """Write the run's lock; where one lies beside the spec, say how far this run is the same."""
    made = make_lock(resolver)
    write_lock(out_dir, made)
    given = resolver.spec.base_dir / LOCK
    if given.is_file():
        try:
            before = read_lock(given)
        except PlanError as error:
            journal.emit("log", text=f"not compared with a lock: {error}")
            return
        drift = [str(found) for found in compare_locks(before, made)]
        journal.emit("lock_compared", lock=str(given), grade=grade(before, made), drift=drift)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event; a second one of either stops at once."""
    interrupted = threading.Event()

    def stop(number: int, frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Execution:
    """One run as it goes; the state of every step is in `states`."""

    def __init__(
        self,
        resolver: Resolver,
        out_dir: Path,
        journal: Journal,
        wanted: set[str],
        address: str | None,
        interrupted: threading.Event,
        only: str | None = None,
    ) -> None:
        self._only = only
        self.resolver = resolver
        self.spec, self.store = resolver.spec, resolver.store
        self.out_dir = out_dir
        self.journal = journal
        self.steps = [step for step in resolver.order if step.name in wanted]
        self.states: dict[str, str] = {step.name: "waiting" for step in self.steps}
        self.components: dict[str, Components] = {}
        self.client = f"run-{uuid.uuid4().hex[:12]}"
        self._address = address
        self._interrupted = interrupted
        self._cluster: Cluster | None = None
        self._expected = 0
        self._started: dict[str, float] = {}
        self._stages: dict[str, Path] = {}
        self._claims: dict[str, ExitStack] = {}
        self._units: dict[int, list[Step]] = {}

    def run(self) -> str:
        """Go on until every step has settled; return the status of the run."""
        self._open()
        while not all(state in SETTLED for state in self.states.values()):
            if self._interrupted.is_set():
                return "interrupted"
            moved = sum(self._advance(step) for step in self.steps if self.states[step.name] == "waiting")
            if not moved:
                self._wait()
        return "failed" if any(state in ("failed", "skipped") for state in self.states.values()) else "done"

    def close(self) -> None:
        """End all work and write what the run knows."""
        for claim in self._claims.values():
            claim.close()
        if self._cluster is not None:
            self._cluster.close()
        for folder in self._stages.values():
            with suppress(OSError):  # not empty, or moved into the store
                folder.rmdir()

    def _open(self) -> None:
        (self.out_dir / "steps").mkdir(parents=True, exist_ok=True)
        (self.out_dir / "spec.yaml").write_text(portable(self.spec), encoding="utf-8")
        (self.out_dir / TEXTS).write_text(json.dumps(self.resolver.texts(), indent=1, ensure_ascii=False), encoding="utf-8")
        self._record()
        steps = [
            {"name": s.name, "op": s.op, "kind": s.operator_type().kind, "inputs": list(self.resolver.edges(s))}
            for s in self.steps
        ]
        self.journal.emit("run_started", name=self.spec.name, spec=digest(self.spec.raw), seed=self.spec.seed, steps=steps)

    def _record(self) -> None:
        """Keep what this run reaches where `gc`, `runs` and the next plan look for it."""
        if self.components:
            write_atomic(self.out_dir / COMPONENTS, json.dumps(self.components, indent=1, default=str) + "\n")
        artifacts = [artifact.digest for artifact in self.resolver.artifacts.values()]
        self.store.record_run(self.spec.name, self.out_dir, artifacts=artifacts)

    # ------------------------------------------------------------------------------------------------ one step

    def _advance(self, step: Step) -> bool:
        """Settle or begin a step if that's possible now; tell whether anything changed."""
        needs = [self.states[name] for name in self.resolver.edges(step)]
        if any(state in ("failed", "skipped") for state in needs):
            self._settle(step, "skipped")
            return True
        if not all(state in SETTLED for state in needs):
            return False
        try:
            components, artifact = self.resolver.settle(step)
            if components is not None:
                self.components[step.name] = components
            if artifact is not None:
                self._settle(step, "cached", artifact)
                return True
            return self._begin(step)
        except (CaiflowError, ValueError, OSError) as error:
            self._fail(step, str(error))
            return True

    def _begin(self, step: Step) -> bool:
        if self._only not in (None, step.name, step.base):
            raise StepError(f"{step.name}: isn't in the store, and --only runs {self._only} alone; use --until {self._only}")
        cluster = self._running_cluster()
        kind = operator_type(step.op)
        if issubclass(kind, RowOperator):
            return self._begin_chain(step, cluster)
        if issubclass(kind, ModelOperator):
            return self._begin_training(step, cluster)
        if issubclass(kind, MetricsOperator):
            return self._begin_measure(step, cluster)
        from caiflow.engine.run.units import TableUnit

        unit = TableUnit(self._work(step), self._inputs(step), self._models(step), self._stage(step))
        return self._submit(cluster, unit, [step], "table")

    def _begin_chain(self, step: Step, cluster: Cluster) -> bool:
        from caiflow.engine.run.units import FlowUnit

        chain = [s for s in self.resolver.chain(step) if self.states.get(s.name) == "waiting"]
        flow_steps = [self.resolver.flow_step(s, s.params.input) for s in chain]  # type: ignore[attr-defined]
        sources = {s.model: self.resolver.model(s.model) for s in flow_steps if s and s.model}
        links = self._links(cluster, sources)
        if links is None:
            return False
        unit = FlowUnit(
            steps=[self._work(s) for s in chain],
            flow_steps=[s for s in flow_steps if s is not None],
            source=self.resolver.artifacts[step.params.input].path,  # type: ignore[attr-defined]
            links=links,
            staged={s.name: self._stage(s) for s in chain},
            ledger_dir=self.store.ledger_dir,
        )
        self.store.record_run(self.spec.name, self.out_dir, ledgers=[s.namespace for s in unit.flow_steps])
        return self._submit(cluster, unit, chain, "flow", engines=self._engine_keys(sources))

    def _begin_measure(self, step: Step, cluster: Cluster) -> bool:
        from caiflow.engine.run.units import MeasureUnit
        from caiflow.engine.store.ledger import ledger_name

        sources = self._models(step)
        links = self._links(cluster, sources)
        if links is None:
            return False
        unit = MeasureUnit(self._work(step), self._inputs(step), sources, links, self._stage(step), self.store.ledger_dir)
        ledgers = [ledger_name(step.op, source.identity) for source in sources.values()]
        self.store.record_run(self.spec.name, self.out_dir, ledgers=ledgers)
        return self._submit(cluster, unit, [step], "flow", engines=self._engine_keys(sources))

    def _begin_training(self, step: Step, cluster: Cluster) -> bool:
        from caiflow.engine.run.units import TrainUnit

        name = digest(self.components[step.name])
        claim = ExitStack()
        if not claim.enter_context(self.store.claim(name)):
            claim.close()
            return False  # another run trains the very same; its artifact will be ours
        wanted = step.params.resources
        gpus = float(wanted.num_gpus if wanted.num_gpus is not None else min(1.0, cluster.gpus)) * wanted.workers
        unit = TrainUnit(self._work(step), self._inputs(step), self._models(step), self._stage(step), self.store.work_dir(name))
        begun = self._submit(cluster, unit, [step], "train", gpus=gpus, cpus=wanted.num_cpus)
        if begun:
            self.store.record_run(self.spec.name, self.out_dir, artifacts=[name])  # so that `gc` keeps its checkpoints
            self._claims[step.name] = claim
        else:
            claim.close()
        return begun

    def _submit(self, cluster: Cluster, unit: Unit, steps: Sequence[Step], pool: str, **how: Any) -> bool:
        if not cluster.submit(unit, pool, **how):
            return False
        self._units[id(unit)] = list(steps)
        for step in steps:
            self.states[step.name] = "running"
            self._started[step.name] = time.monotonic()
            self.journal.emit("step_started", step=step.name)
        return True

    # ---------------------------------------------------------------------------------------- what units are made of

    def _work(self, step: Step) -> StepWork:
        from caiflow.engine.run.units import StepWork

        return StepWork(step.name, step.op, step.params, self.resolver.context(step))

    def _stage(self, step: Step) -> Path:
        """Return the folder for a step's output; one that waits for room is asked for it again and again."""
        if step.name not in self._stages:
            self._stages[step.name] = self.store.stage(step.name)
        return self._stages[step.name]

    def _inputs(self, step: Step) -> dict[str, Path]:
        """Return the folder of each step named as rows."""
        names = [r.name for r in step.references() if r.kind == "rows"]
        return {name: self.resolver.artifacts[name].path for name in names}

    def _models(self, step: Step) -> dict[str, ModelSource]:
        names = [r.name for r in step.references() if r.kind == "model"]
        return {name: source for name in names if (source := self.resolver.model(name)) is not None}

    def _links(self, cluster: Cluster, sources: Mapping[str, ModelSource | None]) -> dict[str, list[Any]] | None:
        """Return links to the engines, by model name; None while one has no room."""
        links: dict[str, list[Any]] = {}
        for name, source in sources.items():
            found = cluster.engine(source, name, f"{self.client}-{uuid.uuid4().hex[:6]}") if source is not None else None
            if found is None:
                return None
            links[name] = list(found)
        return links

    def _engine_keys(self, sources: Mapping[str, ModelSource | None]) -> list[str]:
        from caiflow.engine.run.cluster import engine_key

        return list({engine_key(source) for source in sources.values() if source is not None})

    def _running_cluster(self) -> Cluster:
        if self._cluster is None:
            from caiflow.engine.run.cluster import Cluster

            cluster = Cluster(self._address)
            cluster.on_event = self._relay
            self._cluster = cluster
            cluster.start()
            self._prepare(cluster)
        return self._cluster

    def _prepare(self, cluster: Cluster) -> None:
        """On a machine without GPUs, load the first engine while the sources are read."""
        if cluster.gpus:
            return
        asked = self._asked_models()
        first = next((name for name in asked if name in self.spec.models), None)
        source = self.resolver.model(first) if first else None
        if first and source is not None:
            cluster.alone = len(asked) == 1 and not self._trains()
            cluster.engine(source, first, self.client)
            self._expected = len(asked) - 1

    def _import_ahead(self, cluster: Cluster) -> None:
        """While the first rows flow, let the processes of later steps import what takes seconds."""
        expected, self._expected = self._expected, 0
        if expected and self._trains():
            cluster.warm("train", TRAINERS)
        cluster.expect_engines(expected, ENGINES)

    def _trains(self) -> bool:
        return any(issubclass(operator_type(step.op), ModelOperator) for step in self._unsettled())

    def _unsettled(self) -> list[Step]:
        return [step for step in self.steps if self.states[step.name] not in SETTLED]

    def _asked_models(self) -> list[str]:
        """Return the models that waiting steps will ask, in the order of the steps."""
        steps = [step for step in self._unsettled() if self._asks(step)]
        return list(dict.fromkeys(r.name for step in steps for r in step.references() if r.kind == "model"))

    def _asks(self, step: Step) -> bool:
        return issubclass(operator_type(step.op), (RowOperator, MetricsOperator))

    def _relay(self, event: dict[str, Any]) -> None:
        if event.get("event") == "engine_ready" and self._expected and self._cluster is not None:
            self._import_ahead(self._cluster)
        kind = event.get("event") or ("sample" if "after" in event else "step_progress")
        self.journal.emit(kind, **{name: value for name, value in event.items() if name != "event"})

    # ---------------------------------------------------------------------------------------------------- endings

    def _wait(self) -> None:
        cluster = self._cluster
        if cluster is None or not cluster.busy():
            self._interrupted.wait(POLL_S)  # another run holds what this one waits for
            return
        for finished in cluster.wait(POLL_S):
            self._finished(finished)
        needed = {key for step in self.steps if self.states[step.name] not in SETTLED for key in self._needed_engines(step)}
        cluster.free(needed)

    def _needed_engines(self, step: Step) -> list[str]:
        return self._engine_keys(self._models(step))

    def _finished(self, finished: Finished) -> None:
        for step in self._units.pop(id(finished.unit)):
            result = finished.results.get(step.name)
            if result is None or result.error or result.staged is None:
                reason = result.error if result is not None and result.error else str(finished.error or "its input failed")
                self._fail(step, reason, result)
            elif any(self.states.get(name) in ("failed", "skipped") for name in self.resolver.edges(step)):
                self._settle(step, "skipped")
            else:
                self._seal(step, result)

    def _seal(self, step: Step, result: StepResult) -> None:
        components = self.resolver.components(step)
        assert components is not None, step.name
        assert result.staged is not None, step.name
        self.components[step.name] = components
        meta = {
            "kind": operator_type(step.op).kind,
            "op": step.op,
            "components": components,
            "metrics": dict(result.metrics),
            "rows_in": result.rows_in,
            "rows_out": result.rows_out,
            "counts": dict(result.counts),
            "seconds": round(time.monotonic() - self._started[step.name], 3),
        }
        artifact = self.store.seal(digest(components), result.staged, meta)
        self.resolver.artifacts[step.name] = artifact
        self._settle(step, "done", artifact, result)

    def _fail(self, step: Step, reason: str, result: StepResult | None = None) -> None:
        log = self.out_dir / "logs" / f"{step.name}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(reason + "\n", encoding="utf-8")
        first = reason.strip().splitlines()[0].removeprefix(f"{step.name}: ") if reason.strip() else "failed"
        counts = dict(result.counts) if result else {}
        self._settle(step, "failed", error=f"{first}; the whole report is in {log}", counts=counts)

    def _settle(
        self,
        step: Step,
        status: str,
        artifact: Artifact | None = None,
        result: StepResult | None = None,
        *,
        error: str | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.states[step.name] = status
        claim = self._claims.pop(step.name, None)
        if claim is not None:
            claim.close()
        if artifact is not None:
            _link(self.out_dir / "steps" / step.name, artifact.path)
        self._record()
        begun = self._started.get(step.name)
        counts = dict(result.counts) if result else dict(counts or {})
        self.journal.emit(
            "step_done",
            step=step.name,
            status=status,
            digest=artifact.digest if artifact else None,
            rows_in=artifact.rows_in if artifact else None,
            rows_out=artifact.rows_out if artifact else None,
            seconds=round(time.monotonic() - begun, 3) if begun else 0.0,
            metrics=dict(artifact.metrics) if artifact else None,
            error=error,
            cached=artifact.rows_out if artifact and status == "cached" else counts.get("cached"),
            **{name: counts[name] for name in ("dropped", "failed", "calls", "reused_calls") if name in counts},
        )


def _link(link: Path, target: Path) -> None:
    """Point `link` at an artifact, replacing an earlier link."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target, target_is_directory=True)
    os.replace(fresh, link)
