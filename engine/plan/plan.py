"""What a run would do, and why: each step's components beside what the store and the ledger hold of it.

`plan`, `why` and `run` all resolve steps with one Resolver, so none can say what another doesn't do. Starts no engine, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from caiflow.engine import machine
from caiflow.engine.identity import digest
from caiflow.engine.plan.changes import changes, describe, why_raised
from caiflow.engine.plan.components import COMPONENTS, NOT_IN_ROWS, TEXTS, Components, Resolver
from caiflow.engine.plan.expected import estimates
from caiflow.engine.plan.foresight import Foresight
from caiflow.engine.plan.learnt_tokens import Learnt, learnt_tokens
from caiflow.engine.plan.memory import Devices, StepMemory, devices_here, memory_of
from caiflow.engine.spec.graph import ancestors, chosen
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.store.artifacts import read_artifact

if TYPE_CHECKING:
    from caiflow.engine.flow.outcomes import FlowStep
    from caiflow.engine.flow.row_llm import Tally
    from caiflow.engine.spec.grammar import Spec, Step
    from caiflow.engine.store.artifacts import Artifact, Store
    from caiflow.engine.store.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """What will become of one step. `rows` is None while nobody can know; `to_run` counts rows, or 1 for a step without rows.

    `previous` holds the components of the step's last run under this spec's name, where there was one.
    """

    name: str
    op: str
    state: str
    rows: int | None = None
    cached: int = 0
    to_run: int | None = None
    reason: str = ""
    digest: str | None = None
    components: Components | None = None
    previous: Components | None = None
    calls: int | None = None
    tokens: int | None = None
    at_most: bool = False
    """Whether `rows`, `to_run` and `calls` are bounds: rows before it may be left out yet, or answers be there already."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a whole spec. `segments` are the groups of steps that stream together; `resources` says what is short.

    `require` has the bounds that each step's output must be within before the steps behind it begin.
    """

    steps: tuple[PlannedStep, ...]
    segments: tuple[tuple[str, ...], ...] = ()
    resources: tuple[str, ...] = ()
    require: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    """Rules of operators that have changed since this spec ran last, and the answers that this costs."""
    unchecked: tuple[str, ...] = ()
    """Models whose files aren't on this machine yet, so that nothing was held against them."""
    unreached: tuple[str, ...] = ()
    """What only the hub could tell, and why it can't be asked: what depends on that isn't known."""
    ways: tuple[str, ...] = ()
    """How served models are asked, where their servers taught caiflow to ask otherwise."""
    memory: tuple[StepMemory, ...] = ()
    """What each training that is to run needs of a device's memory, and whether it fits."""
    learnt: tuple[Learnt, ...] = ()
    """Whether each training that is to run learns the tokens that engines sample under its model's chat template."""

    def to_json(self) -> dict[str, Any]:
        """Return the contract's form, and what else is known."""
        names = ("name", "op", "state", "rows", "cached", "to_run", "reason", "digest", "calls", "tokens", "at_most")
        return {
            "steps": [{name: getattr(step, name) for name in names} for step in self.steps],
            "segments": [list(segment) for segment in self.segments],
            "resources": list(self.resources),
            "require": {name: dict(bounds) for name, bounds in self.require.items()},
            "rules": list(self.rules),
            "unchecked": list(self.unchecked),
            "unreached": list(self.unreached),
            "ways": list(self.ways),
            "memory": [step.to_json() for step in self.memory],
            "learnt": [{**step._asdict(), "parts": list(step.parts)} for step in self.learnt],
        }


def make_plan(
    spec: Spec,
    store: Store,
    *,
    until: str | None = None,
    trust_remote_code: bool = False,
    devices: Devices | None = None,
    allowed: Permissions = Permissions(),
) -> Plan:
    """Return what `run` would do now, of the whole spec or up to one step, and why; on this machine unless `devices` are given.

    `allowed` adds to the user's own file.

    Raises:
        PlanError: a model can't be found. One that only a hub that is out of reach may have isn't known.
        SpecError: there is no step `until`.
    """
    wanted = chosen(spec, until)
    resolver = Foresight(spec, store, trust_remote_code=trust_remote_code, allowed=allowed)
    previous = previous_components(spec, store)
    planned: dict[str, PlannedStep] = {}
    segments: list[tuple[str, ...]] = []
    with _Ledgers(store) as ledgers:
        for step in resolver.order:
            if step.name in planned:
                continue
            before = previous.get(step.name)
            components, artifact = resolver.settle(step)
            if artifact is not None:
                planned[step.name] = _cached(step, artifact, components, before)
            elif resolver.is_row_step(step.name) and step.input in resolver.artifacts:
                chain = resolver.chain(step)
                segments.append(tuple(member.name for member in chain))
                planned.update(_plan_chain(resolver, chain, ledgers, previous))
            else:
                if resolver.is_row_step(step.name) and not any(step.name in segment for segment in segments):
                    segments.append(tuple(m.name for m in resolver.chain(step) if m.name not in planned))
                planned[step.name] = _to_run(resolver, step, components, before, planned)
    for name, why in resolver.remade.items():
        planned[name] = replace(planned[name], reason=f"{why}; {planned[name].reason}")
    planned = _estimated(resolver, planned)
    in_order = tuple(planned[step.name] for step in resolver.order if step.name in wanted)
    streams = (tuple(name for name in segment if name in wanted) for segment in segments)
    require = {name: step.params.require for name, step in spec.steps.items() if name in wanted and step.params.require}
    told: dict[str, Any] = {"rules": tuple(changed_rules(resolver, in_order)), "unchecked": tuple(resolver.without_files())}
    told["unreached"] = tuple(dict.fromkeys(resolver.unreached.values()))
    told["ways"] = tuple(resolver.ways())
    to_run = {step.name for step in in_order if step.state != "cached"}
    needed = tuple(one for one in memory_of(spec, store, devices or devices_here()) if one.step in to_run)
    told["learnt"] = tuple(one for one in learnt_tokens(spec) if one.step in to_run)
    return Plan(in_order, tuple(filter(None, streams)), tuple(shortages(spec)), require, **told, memory=needed)


def _estimated(resolver: Resolver, planned: Mapping[str, PlannedStep]) -> dict[str, PlannedStep]:
    """Return the steps with the rows and calls that can be told of those that couldn't be counted."""
    made = {name: step.rows for name, step in planned.items() if step.state == "cached" and step.rows is not None}
    found = {**planned}
    for name, told in estimates(resolver, made).items():
        if planned[name].rows is None and planned[name].state != "cached":
            found[name] = replace(planned[name], rows=told.rows, to_run=told.rows, calls=told.calls, at_most=told.at_most)
    return found


class _Ledgers:
    """Ledgers opened once each, closed together."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[str, Any] = {}

    def __enter__(self) -> _Ledgers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for ledger in self._open.values():
            ledger.close()

    def __call__(self, namespace: str) -> Any:
        if namespace not in self._open:
            from caiflow.engine.store.ledger import Ledger

            self._open[namespace] = Ledger(self._store.ledger_dir, namespace)
        return self._open[namespace]


def _cached(step: Step, artifact: Artifact, components: Components | None, before: Components | None) -> PlannedStep:
    rows = artifact.rows_out
    reason = (
        "unchanged" if before is None or before == components else "done by an earlier run than the last, which had another"
    )
    return _planned(step, "cached", reason, components, before, rows=rows, cached=rows or 0, to_run=0, calls=0, tokens=0)


def _planned(
    step: Step,
    state: str,
    reason: str,
    components: Components | None,
    previous: Components | None,
    cached: int = 0,
    **counts: Any,
) -> PlannedStep:
    return PlannedStep(
        name=step.name,
        op=step.op,
        state=state,
        reason=reason,
        digest=digest(components) if components is not None else None,
        components=components,
        previous=previous,
        cached=cached,
        **counts,
    )


def _to_run(
    resolver: Foresight,
    step: Step,
    components: Components | None,
    before: Components | None,
    planned: Mapping[str, PlannedStep],
) -> PlannedStep:
    reason = _reason(components, before) if components is not None else _waits(resolver, step, planned)
    own = resolver.row_components(step)
    if components is None and own is not None and before is not None:
        changed = [c for c in changes(before, own) if c[0].split(".")[0] not in NOT_IN_ROWS]
        reason = "; ".join([*_described(changed), reason])
    if components is not None and resolver.learnt(step, components):
        return _planned(step, "partial", f"{reason}; trained before, only saved in another form", components, before)
    if components is not None and before not in (None, components) and _of_one_training(resolver, step, components, before):
        reason += "; what it learnt isn't kept apart from its form, so it trains once more"
    if components is not None and (steps := _steps_kept(resolver, step, components)):
        return _planned(step, "partial", f"cut off before; goes on after {steps} optimizer steps", components, before)
    return _planned(step, "run", reason, components, before)


def _of_one_training(resolver: Foresight, step: Step, components: Components, before: Components | None) -> bool:
    """Return whether a training learns what it learnt before, and only saves it otherwise."""
    key = resolver.learnt_key(step, components)
    return key is not None and before is not None and key == resolver.learnt_key(step, before)


def _waits(resolver: Foresight, step: Step, planned: Mapping[str, PlannedStep]) -> str:
    """Return what a step without an identity waits for, or why the hub's word on it is missing."""
    waiting = [name for name in resolver.edges(step) if planned[name].state != "cached"]
    return "; ".join(filter(None, [f"after {', '.join(waiting)}" if waiting else "", resolver.silence(step)]))


def _steps_kept(resolver: Resolver, step: Step, components: Components) -> int:
    """Return the optimizer steps of a training that its checkpoints hold."""
    from caiflow.engine.store.checkpoints import steps_kept

    if step.operator_type().kind != "model":
        return 0
    return steps_kept(resolver.store.work_path(resolver.work_key(step, components)))


def _reason(components: Components, before: Components | None) -> str:
    if before is None:
        return "never run"
    return "; ".join(_described(changes(before, components))) or "its result isn't in the store"


def _described(found: Iterable[tuple[str, Any, Any]]) -> list[str]:
    return list(dict.fromkeys(map(describe, found)))


def _plan_chain(
    resolver: Foresight, chain: Sequence[Step], ledgers: _Ledgers, previous: Mapping[str, Components]
) -> dict[str, PlannedStep]:
    """Count what the ledger holds for the steps of one chain, whose first step's input is made."""
    from caiflow.engine.flow.counting import count_known, count_until
    from caiflow.engine.rows.folder import Rows

    flow_steps = [resolver.flow_step(step) for step in chain]
    known: list[FlowStep] = []
    uncounted: set[str] = set()
    for step, flow_step in zip(chain, flow_steps, strict=True):
        if flow_step is None or flow_step.source in uncounted:
            uncounted.add(step.name)
        else:
            known.append(flow_step)
    source, cut = Rows(resolver.artifacts[chain[0].input].path), resolver.cut_of(chain)
    if cut is None:
        tallies, until = count_known(known, source, ledgers), ""
    else:
        tallies, tried = count_until(known, source, ledgers, cut, whole=len(known) == len(chain))
        until = tried.foretold(cut.until)
    flow_of = {flow_step.name: flow_step for flow_step in known}
    planned = {}
    for step in chain:
        components, before = resolver.components(step), previous.get(step.name)
        if step.name in tallies:
            tally = tallies[step.name]
            per_row = tally.tokens / tally.cached if tally.cached else _usual_tokens(ledgers(flow_of[step.name].namespace))
            counted = _counted(resolver, step, tally, components, before, per_row)
            at_most = bool(until) or _at_most(flow_of[step.name], tallies, ledgers)
            planned[step.name] = replace(counted, reason=f"{counted.reason}{until}", at_most=at_most)
        else:
            after = f"after {step.input}" if step.input in uncounted else resolver.silence(step) or "after its model"
            planned[step.name] = _planned(step, "run", after, components, before)
    return planned


def _at_most(step: FlowStep, tallies: Mapping[str, Tally], ledgers: _Ledgers) -> bool:
    """Return whether fewer rows may have to run than were counted, or take fewer calls.

    A row that isn't made yet may be left out, or come out as one whose result is kept; of several calls some may be kept.
    """
    to_run = {name: tally.total - tally.cached for name, tally in tallies.items()}
    some_kept = step.operator.calls() > 1 and any(ledgers(step.namespace).path.glob("*.seg"))
    return bool(to_run[step.name] and (to_run.get(step.source) or some_kept))


def _counted(
    resolver: Resolver, step: Step, tally: Tally, components: Components | None, before: Components | None, per_row: float
) -> PlannedStep:
    to_run = tally.total - tally.cached
    own = components if components is not None else resolver.row_components(step)
    changed = changes(before, own) if before is not None and own is not None else []
    skip = NOT_IN_ROWS if components is None else ()
    why = "; ".join(_described(change for change in changed if change[0].split(".")[0] not in skip))
    if not why and before is None:
        why = "not done yet" if tally.cached else "never run"
    elif not why:
        why = "new or changed rows" if changed or own is None else "not done yet"
    reason = f"{to_run} of {tally.total} rows: {why}" if to_run else "all rows are in the ledger"
    state = "partial" if tally.cached else "run"
    tokens = round(per_row * to_run) if per_row or not to_run else None
    counts = {"rows": tally.total, "to_run": to_run, "calls": tally.calls, "tokens": tokens}
    return _planned(step, state, reason, components, before, tally.cached, **counts)


def _usual_tokens(ledger: Ledger) -> float:
    """Return the mean tokens of a row that this operator and model had in any run so far; 0 where there was none."""
    payloads = (ledger.get(key) for key in islice(ledger, 500))
    known = [payload["tokens"] for payload in payloads if payload is not None and "tokens" in payload]
    return sum(known) / len(known) if known else 0.0


def changed_rules(resolver: Resolver, planned: Sequence[PlannedStep]) -> Iterator[str]:
    """Yield each rule of an operator that has changed since the last run, with the answers of that run which it costs."""
    steps_of: dict[str, list[str]] = {}
    for step in planned:
        now, before = resolver.row_components(resolver.spec.steps[step.name]) or {}, step.previous or {}
        if why := why_raised(str(before.get("operator", "")), str(now.get("operator", ""))):
            steps_of.setdefault(why, []).append(step.name)
    for why, changed in steps_of.items():
        lost = [one for one in planned if one.previous and {*changed} & ancestors(resolver.spec, one.name)]
        answers = sum(_answers_of(resolver, one) for one in lost)
        cost = f"; {answers:,} answers of the last run are asked again" if answers else ""
        yield f"{', '.join(changed)}: {why}{cost}"


def _answers_of(resolver: Resolver, step: PlannedStep) -> int:
    """Return the rows of a step's last output, where each is a model's answer."""
    if not resolver.is_row_step(step.name) or not getattr(resolver.spec.steps[step.name].params, "model", None):
        return 0
    path = resolver.store.path(digest(step.previous))
    return (read_artifact(path).rows_out or 0) if path.is_dir() else 0


def previous_components(spec: Spec, store: Store) -> dict[str, Components]:
    """Return each step's components in the latest run under this spec's name that had got so far."""
    found: dict[str, Components] = {}
    for left in _left_behind(spec, store, COMPONENTS):
        for name, components in left.items():
            found.setdefault(name, components)
    return found


def previous_texts(spec: Spec, store: Store) -> dict[str, Any]:
    """Return the texts of all runs under this spec's name, by the digests that stand for them in components."""
    return {key: text for left in _left_behind(spec, store, TEXTS) for key, text in left.items()}


def _left_behind(spec: Spec, store: Store, name: str) -> Iterator[dict[str, Any]]:
    """Yield what this spec's runs have in a file of that name, the latest run's first."""
    import json

    for run in reversed(store.runs()):
        path = run.run_dir / name
        if run.name == spec.name and path.is_file():
            yield json.loads(path.read_text(encoding="utf-8"))


def shortages(spec: Spec) -> list[str]:
    """Return, in words, what the steps ask for that this machine lacks."""
    gpus, cpus = machine.gpus(), machine.cores()
    found = []
    for step in spec.steps.values():
        wanted = step.params.resources
        if (wanted.num_gpus or 0) * wanted.workers > gpus:
            found.append(f"{step.name}: asks for {wanted.num_gpus:g} GPUs x {wanted.workers}, this machine has {gpus}")
        if (wanted.num_cpus or 0) * wanted.workers > cpus:
            found.append(f"{step.name}: asks for {wanted.num_cpus:g} CPUs x {wanted.workers}, this machine has {cpus}")
    for name, entry in spec.models.items():
        for unit, asked, there in (("GPUs", entry.num_gpus, gpus), ("CPUs", entry.num_cpus, cpus)):
            if (asked or 0) * entry.replicas > there:
                times = f" x {entry.replicas} replicas" if entry.replicas > 1 else ""
                found.append(f"models.{name}: asks for {asked:g} {unit}{times}, this machine has {there}")
        if entry.exact and not gpus:
            found.append(f"models.{name}: asks for exact answers, which need an NVIDIA GPU; this machine has none")
    return found
