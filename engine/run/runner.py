"""Carrying out a plan: each step when its inputs are made, side by side where there is room, until all have settled.

Owns the order of work and the fate of steps behind a failed one. Knows the four shapes of operators, none by name. What is
left of each step is the folder's, Ray the cluster's: it starts with the first step that isn't in the store.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import AskAnewError, CaiflowError, ClusterError, StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import MetricsOperator, ModelOperator, TableOperator
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.consent import refuse_unallowed, servers, with_typed
from caiflow.engine.plan.lock import make_lock, read_lock, refuse_drift
from caiflow.engine.run.control import Control, interruptible
from caiflow.engine.run.folder import RunFolder
from caiflow.engine.run.on_ray.nodes import Growth
from caiflow.engine.spec.graph import chosen
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.checkpoints import going_on, have_rest
from caiflow.engine.store.journal import Event, Journal, RunStatus

if TYPE_CHECKING:
    from caiflow.engine.run.head_start import HeadStart
    from caiflow.engine.run.on_ray.cluster import Cluster, Finished
    from caiflow.engine.run.shards import Sharding
    from caiflow.engine.run.units import Unit
    from caiflow.engine.spec.grammar import Spec, Step

POLL_S = 0.25
_MOST_LESSONS = 20
"""How often work begins anew by what servers taught: one that says another thing each time is given up."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended; `exit_code` is the command's."""

    status: RunStatus
    exit_code: int
    run_dir: Path


def run(  # noqa: PLR0913 - all that a run can be asked
    spec: Spec,
    store: Store,
    out_dir: Path,
    *,
    only: str | None = None,
    until: str | None = None,
    address: str | None = None,
    growth: Growth = Growth(),
    on_event: Callable[[Event], None] | None = None,
    trust_remote_code: bool = False,
    allowed: Permissions = Permissions(),
    locked: Path | None = None,
) -> RunResult:
    """Carry out a spec and leave the run's folder behind; SIGINT and SIGTERM stop it within seconds.

    An autoscaler may add `growth`; `locked` names a lock that it must not differ from, `allowed` adds to the user's own file.

    Raises:
        PlanError: something isn't allowed, a model can't be found, the lock isn't met, or the cluster lacks what is asked for.
        StoreError: the store can't be written.
    """
    refuse_unallowed(spec.models, with_typed(spec.models, spec.source, allowed), trust_remote_code=trust_remote_code)
    wanted = chosen(spec, only or until)
    resolver = Resolver(spec, store, trust_remote_code=trust_remote_code, allowed=allowed)
    if locked is not None:
        refuse_drift(read_lock(locked), make_lock(resolver), locked)
    with Journal(out_dir, on_event) as journal, interruptible() as interrupted:
        folder = RunFolder(resolver, out_dir, journal, [step for step in resolver.order if step.name in wanted], interrupted)
        for host, names in servers(spec.models).items():
            journal.emit("log", text=f"{host} is asked for {', '.join(names)}")
        execution = _Execution(resolver, folder, journal, (address, growth), interrupted, only)
        try:
            status = execution.run()
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            execution.close()
        for step, work in execution.cut_off().items() if status == "interrupted" else ():
            journal.emit("log", step=step, text=going_on(work))
        folder.lock()
        folder.report()
        journal.emit("run_done", status=status)
    return RunResult(status, {"done": 0, "failed": 1, "interrupted": 130}[status], out_dir)


class _Execution:
    """One run as it goes: what can begin begins, until every step of the folder has settled."""

    def __init__(
        self,
        resolver: Resolver,
        folder: RunFolder,
        journal: Journal,
        at: tuple[str | None, Growth],
        interrupted: threading.Event,
        only: str | None = None,
    ) -> None:
        self.resolver = resolver
        self.spec, self.store = resolver.spec, resolver.store
        self.folder = folder
        self.client = f"run-{uuid.uuid4().hex[:12]}"
        self._journal = journal
        self._control = Control(journal.run_dir, journal)
        self._only = only
        self._at = at
        self._interrupted = interrupted
        self._cluster: Cluster | None = None
        self._sharding: Sharding
        self._head_start: HeadStart | None = None
        self._stages: dict[str, Path] = {}
        self._claims: dict[str, ExitStack] = {}
        self._units: dict[int, list[Step]] = {}
        self._lessons: list[str] = []
        self._claims_told: set[str] = set()
        self._known: dict[str, set[str]] = {}

    def run(self) -> RunStatus:
        """Go on until every step has settled; return the status of the run."""
        self.folder.open()
        while steps := self.folder.unsettled():
            if self._interrupted.is_set():
                return "interrupted"
            rested, controls = self._control.asked.paused, self._control.look()
            if controls.paused != rested:
                for place in self.cut_off().values():
                    have_rest(place, controls.paused)
            if self._cluster is not None:
                self._cluster.engines.controlling.controls = controls
            moved = sum(self._advance(step) for step in steps if self.folder.status[step.name] == "waiting")
            if not moved:
                self._wait()
        return "done" if self.folder.whole() else "interrupted" if self._interrupted.is_set() else "failed"

    def cut_off(self) -> dict[str, Path]:
        """Return the trainings that haven't settled, and where their checkpoints are."""
        return {name: self.store.work_path(self._work_key(self.spec.steps[name])) for name in self._claims}

    def close(self) -> None:
        """End all work."""
        self.folder.close()
        for claim in self._claims.values():
            claim.close()
        if self._cluster is not None:
            self._sharding.close()
        for folder in self._stages.values():
            with suppress(OSError):  # not empty, or moved into the store
                folder.rmdir()

    def _advance(self, step: Step) -> bool:
        """Settle or begin a step if that's possible now; return whether anything changed."""
        if self.folder.lost_an_input(step):
            self.folder.skip(step)
            return True
        if not self.folder.has_inputs(step):
            return False
        try:
            components, artifact = self.resolver.settle(step)
            if components is not None:
                self.folder.components[step.name] = components
            if artifact is not None:
                self.folder.cache(step, artifact)
                return True
            if self._control.asked.paused:
                return False
            begun = self._begin(step)
            if begun and (why := self.resolver.remade.get(step.name)):
                self._journal.emit("log", text=f"{step.name} is made anew: {why}")
            return begun
        except ClusterError:
            raise  # no step could do better
        except (CaiflowError, ValueError, OSError) as error:
            self.folder.fail(step, str(error))
            return True

    def _wait(self) -> None:
        if (cluster := self._cluster) is None:
            time.sleep(POLL_S)  # another run holds what this one waits for; a signal's handler can't set what is waited on
            return
        for finished in self._sharding.wait(POLL_S):
            steps = self._units.pop(id(finished.unit))
            if isinstance(finished.error, AskAnewError) and len(self._lessons) < _MOST_LESSONS:
                self._begin_anew(steps, finished.error)
                continue
            for step in steps:
                self._settle(step, finished)
        cluster.engines.free({key for step in self.folder.unsettled() for key in self._engine_keys(self._models(step))})

    def _begin_anew(self, steps: Sequence[Step], taught: AskAnewError) -> None:
        """Begin steps once more, under the identity that a model has after what its server taught."""
        if str(taught) not in self._lessons:
            self._journal.emit("log", text=str(taught))
        self._lessons.append(str(taught))
        self.resolver.forget_served()
        self.folder.begin_anew(steps)

    def _settle(self, step: Step, finished: Finished) -> None:
        result = finished.results.get(step.name)
        if step.name in self._claims:
            self.folder.learnt(step)
        if result is None or result.error or result.staged is None:
            reason = result.error if result is not None and result.error else str(finished.error or "its input failed")
            self.folder.fail(step, reason, result.counts if result is not None else None)
        elif self.folder.lost_an_input(step):
            self.folder.skip(step)
        else:
            self.folder.seal(step, result, finished.results)
        if claim := self._claims.pop(step.name, None):
            claim.close()

    def _begin(self, step: Step) -> bool:
        if self._only not in (None, step.name, step.base):
            raise StepError(f"{step.name}: isn't in the store, and --only runs {self._only} alone; use --until {self._only}")
        cluster = self._running_cluster()
        operator = self.spec.operators[step.name]
        if isinstance(operator, ModelOperator):
            return self._begin_training(step, operator, cluster)
        if isinstance(operator, MetricsOperator):
            return self._begin_measure(step, operator, cluster)
        if isinstance(operator, TableOperator):
            return self._begin_table(step, operator, cluster)
        return self._begin_chain(step, cluster)

    def _begin_table(self, step: Step, operator: TableOperator[Any], cluster: Cluster) -> bool:
        from caiflow.engine.run.units import TableUnit

        unit = TableUnit(step.name, operator, self._inputs(step), self._models(step), self._stage(step))
        return self._submit(cluster, unit, [step], "table")

    def _begin_chain(self, step: Step, cluster: Cluster) -> bool:
        from caiflow.engine.run.fitting import beginning, never_fits
        from caiflow.engine.run.flows import FlowUnit
        from caiflow.engine.run.later import answered_before
        from caiflow.engine.run.shards import number_of_shards

        waiting = [s for s in self.resolver.chain(step) if self.folder.status.get(s.name) == "waiting"]
        chain, cut = beginning(self.resolver, cluster, waiting), self.resolver.cut_of(waiting)
        if cut is not None and len(chain) < len(waiting):
            raise StepError(*never_fits(cut.step, waiting))
        flow_steps = [found for s in chain if (found := self.resolver.flow_step(s)) is not None]
        sources = {name: self.resolver.model(name) for s in flow_steps for name in s.clients}
        source = self.resolver.artifacts[step.input]
        self._keep(sources)
        if step.name not in self._known:  # a chain that waits for room looks for it again and again
            self._known[step.name] = answered_before(flow_steps, source.path, self.store.ledger_dir)
        shards = 1 if cut else number_of_shards(flow_steps, source.rows_out or 0, len(self._sharding.nodes))
        links = [own for _ in range(shards) if (own := self._links(cluster, sources, self._known[step.name])) is not None]
        if len(links) < shards:
            return False
        staged = {s.name: self._stage(s) for s in chain}
        unit = FlowUnit(flow_steps, source.path, links[0] if shards == 1 else {}, staged, self.store.ledger_dir, cut)
        self.folder.keep(ledgers=[name for s in unit.steps for name in s.ledgers])
        return self._note(self._sharding.submit(unit, links, self._engine_keys(sources)), unit, chain)

    def _begin_measure(self, step: Step, operator: MetricsOperator[Any], cluster: Cluster) -> bool:
        from caiflow.engine.run.later import asked_before
        from caiflow.engine.run.units import MeasureUnit
        from caiflow.engine.store.ledger import ledger_name

        sources = self._models(step)
        known = {name for name, source in sources.items() if asked_before(self.store.ledger_dir, step.op, source)}
        links = self._links(cluster, sources, known)
        if links is None:
            return False
        unit = MeasureUnit(step.name, operator, self._inputs(step), sources, self._stage(step), links, self.store.ledger_dir)
        self.folder.keep(ledgers=[ledger_name(step.op, source.identity) for source in sources.values()])
        return self._submit(cluster, unit, [step], "flow", engines=self._engine_keys(sources))

    def _begin_training(self, step: Step, operator: ModelOperator[Any], cluster: Cluster) -> bool:
        from caiflow.engine.run.fitting import training_room
        from caiflow.engine.run.units import TrainUnit
        from caiflow.engine.store.ledger import ledger_name

        name = self._work_key(step)
        claim = ExitStack()
        if not claim.enter_context(self.store.claim(name)):
            claim.close()
            if step.name not in self._claims_told:
                self._claims_told.add(step.name)
                self._journal.emit("log", text=f"{step.name} waits for another training of the very same")
            return False  # its artifact will be ours
        models, learnt = self._models(step), self.folder.learnt(step)
        asked = {} if learnt else {model: models[model] for model in operator.asks()}
        begun, links = False, self._links(cluster, asked)
        if links is not None:
            places = self._stage(step), self.store.work_dir(name), links, self.store.ledger_dir
            have_rest(places[1], False)  # a run that was cut off while it rested may have left that
            unit = TrainUnit(step.name, operator, self._inputs(step), models, *places, learnt.path if learnt else None)
            room = training_room(step, cluster)
            room = replace(room, processes=1) if learnt else room
            begun = self._submit(cluster, unit, [step], "train", room=room, engines=self._engine_keys(asked))
        if begun:
            ledgers = [ledger_name(step.op, source.identity) for source in asked.values()]
            self.folder.keep(artifacts=[name], ledgers=ledgers)  # `gc` keeps its checkpoints, too
            self._claims[step.name] = claim
            if self._head_start is not None:
                self._head_start.on_training()
        else:
            claim.close()
        return begun

    def _submit(self, cluster: Cluster, unit: Unit, steps: Sequence[Step], pool: str, **how: Any) -> bool:
        return self._note(cluster.submit(unit, pool, **how), unit, steps)

    def _note(self, begun: bool, unit: Unit, steps: Sequence[Step]) -> bool:
        """Take note of the steps of a unit, where it has begun."""
        if begun:
            self._units[id(unit)] = list(steps)
            for step in steps:
                self.folder.start(step)
        return begun

    # ---------------------------------------------------------------------------------------- what units are made of

    def _stage(self, step: Step) -> Path:
        """Return the folder for a step's output: always the same one, since a step that waits for room asks again and again."""
        if step.name not in self._stages:
            self._stages[step.name] = self.store.stage(step.name)
        return self._stages[step.name]

    def _work_key(self, step: Step) -> str:
        return self.resolver.work_key(step, self.folder.components[step.name])

    def _inputs(self, step: Step) -> dict[str, Path]:
        """Return the folder of each step named as rows."""
        names = [r.name for r in step.references() if r.kind == "rows"]
        return {name: self.resolver.artifacts[name].path for name in names}

    def _models(self, step: Step) -> dict[str, ModelSource]:
        names = [r.name for r in step.references() if r.kind == "model"]
        found = {name: source for name in names if (source := self.resolver.model(name)) is not None}
        self._keep(found)
        return found

    def _keep(self, sources: Mapping[str, ModelSource | None]) -> None:
        """Have `gc` keep what GGUF files are unpacked into."""
        if unpacked := [Path(source.path).name for source in sources.values() if source and source.gguf]:
            self.folder.keep(artifacts=unpacked)

    def _links(
        self, cluster: Cluster, sources: Mapping[str, ModelSource | None], known: Collection[str] = ()
    ) -> dict[str, list[Any]] | None:
        """Return links to the engines, by model name; None while one has no room. What is `known` may never be asked."""
        from caiflow.engine.run.later import LinkLater

        links: dict[str, list[Any]] = {}
        keys = self._engine_keys(sources)
        for name, source in sources.items():
            client = f"{self.client}-{uuid.uuid4().hex[:6]}"
            found = source and cluster.engine(source, name, client, beside=keys, load=name not in known)
            if source is None or found is None:
                return None
            links[name] = [LinkLater(link, source) for link in found] if name in known else list(found)
        return links

    def _engine_keys(self, sources: Mapping[str, ModelSource | None]) -> list[str]:
        from caiflow.engine.run.on_ray.placing import engine_key

        return list({engine_key(source) for source in sources.values() if source is not None})

    def _running_cluster(self) -> Cluster:
        if self._cluster is None:
            from caiflow.engine.run.fitting import refuse_unfit, refuse_without_keys
            from caiflow.engine.run.head_start import HeadStart
            from caiflow.engine.run.on_ray.cluster import Cluster
            from caiflow.engine.run.shards import Sharding

            if (address := self._at[0]) is None:  # the nodes of a cluster have variables of their own
                refuse_without_keys(self.resolver, self.folder.unsettled())
            self._journal.emit("entering", text=f"joining Ray at {address}" if address else "starting Ray")
            self._cluster = Cluster(*self._at)
            self._sharding = Sharding(self._cluster, self._relay)
            self._cluster.start()
            refuse_unfit(self.resolver, self._cluster, self.folder.unsettled())
            self._head_start = HeadStart(self._cluster, self.folder.unsettled)
            self._head_start.load_first_engine(self.resolver, self.client)
        return self._cluster

    def _relay(self, event: dict[str, Any]) -> None:
        if event.get("event") == "engine_ready" and self._head_start is not None:
            self._head_start.on_engine_ready()
        if event.get("event") == "engine_wanted" and self._cluster is not None:
            if (source := self.resolver.model(event["model"])) is not None:
                self._cluster.engine(source, event["model"], self.client)
            return
        fields = {name: value for name, value in event.items() if name != "event"}
        self._journal.emit(event.get("event") or "step_progress", **fields)
