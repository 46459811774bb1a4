"""What a run would do, and why: the components of each step's identity, and what the store and the ledger hold of it.

`plan`, `why` and `run` all resolve steps here, so none can say what another doesn't do. Starts no engine and no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.graph import ancestors, topological, upstream_of
from caiflow.engine.identity import digest, identity_params
from caiflow.engine.machine import cores
from caiflow.engine.models import resolve_model, trained_model
from caiflow.engine.operator import ModelSource, Operator, RowOperator, RowParams, StepContext
from caiflow.engine.registry import operator as operator_type

if TYPE_CHECKING:
    from caiflow.engine.constitution import Constitution
    from caiflow.engine.flow import FlowStep
    from caiflow.engine.language import Spec, Step
    from caiflow.engine.ledger import Ledger
    from caiflow.engine.row_llm import Tally
    from caiflow.engine.store import Artifact, Store

KEY_FORMAT = 1
COMPONENTS = "components.json"
TEXTS = "texts.json"
"""In a run's folder: the principles and examples behind the digests in its components."""
"""In a run's folder: the components of every step that was settled, for `why` and the next plan."""
NOT_IN_ROWS = ("inputs", "principles", "few_shot")
"""Groups of components that a row's key holds only as far as they touch that row."""
Components = dict[str, Any]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a whole spec. `segments` are the groups of steps that stream together; `resources` says what is short."""

    steps: tuple[PlannedStep, ...]
    segments: tuple[tuple[str, ...], ...] = ()
    resources: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the contract's form, and what else is known."""
        names = ("name", "op", "state", "rows", "cached", "to_run", "reason", "digest", "calls", "tokens")
        return {
            "steps": [{name: getattr(step, name) for name in names} for step in self.steps],
            "segments": [list(segment) for segment in self.segments],
            "resources": list(self.resources),
        }


class Resolver:
    """Answers, for the steps of one spec, what they depend on, as far as their inputs are already made.

    `artifacts` holds the output of every step settled so far; the run adds to it as steps finish.
    """

    def __init__(self, spec: Spec, store: Store, *, trust_remote_code: bool = False) -> None:
        self.spec = spec
        self.store = store
        self.artifacts: dict[str, Artifact] = {}
        self.order: list[Step] = list(topological(spec))
        self._trust = trust_remote_code
        self._entries: dict[str, ModelSource] = {}
        self._operators: dict[str, Operator[Any]] = {}
        self._constitutions: dict[str, Any] = {}

    def operator(self, step: Step) -> Operator[Any]:
        """Return the step's operator, made once."""
        if step.name not in self._operators:
            self._operators[step.name] = operator_type(step.op)(step.params, self.context(step))
        return self._operators[step.name]

    def context(self, step: Step) -> StepContext:
        """Return what the operator may know of the spec."""
        value = step.constitution if step.constitution is not None else self.spec.constitution
        constitution = None
        if value is not None:
            kept_as = repr(value)
            if kept_as not in self._constitutions:
                from caiflow.engine.constitution import load_constitution

                self._constitutions[kept_as] = load_constitution(value, self.spec.base_dir)
            constitution = self._constitutions[kept_as]
        return StepContext(seed=self.spec.seed, base_dir=self.spec.base_dir, constitution=constitution)

    def model(self, name: str) -> ModelSource | None:
        """Return a model by the name parameters use; None for a step that isn't trained yet."""
        if name in self.spec.models:
            if name not in self._entries:
                self._entries[name] = resolve_model(
                    name, self.spec.models[name], self.spec.base_dir, trust_remote_code=self._trust
                )
            return self._entries[name]
        if name not in self.artifacts:
            return None
        return trained_model(self.artifacts[name], self._trained_from(name))

    def _trained_from(self, name: str) -> ModelSource | None:
        step = self.spec.steps[name]
        base = getattr(step.params, "model", None)
        return self.model(base) if base else None

    def edges(self, step: Step) -> tuple[str, ...]:
        """Return the steps this one waits for, each once."""
        return upstream_of(step, self.spec)

    def components(self, step: Step) -> Components | None:
        """Return everything that decides the step's output, flat; None while an input isn't made yet."""
        own = self.row_components(step)
        if own is None:
            return None
        components = dict(own)
        for place, reference in _numbered(step):
            if reference.kind == "rows" or self.spec.models.get(reference.name) is None:
                artifact = self.artifacts.get(reference.name)
                if artifact is None:
                    return None
                components[f"inputs.{place}"] = artifact.content
        constitution = self.operator(step).context.constitution
        if constitution is not None and self.operator(step).uses_constitution:
            for principle in constitution.principles:
                components[f"principles.{principle.id}"] = digest(principle)
            components["few_shot"] = digest(example_texts(constitution))
        return components

    def texts(self) -> dict[str, Any]:
        """Return the principles and few-shot examples of all steps, by the digests that stand for them in their components."""
        found: dict[str, Any] = {}
        for step in self.order:
            constitution = self.operator(step).context.constitution
            if constitution is not None and self.operator(step).uses_constitution:
                found |= {digest(principle): principle.model_dump() for principle in constitution.principles}
                found[digest(example_texts(constitution))] = example_texts(constitution)
        return found

    def row_components(self, step: Step) -> Components | None:
        """Return the part of the components that each row's key holds: not the input, not the principles it didn't draw."""
        operator = self.operator(step)
        components: Components = {
            "format": KEY_FORMAT,
            "operator": f"{operator.name}@{operator.version}",
            "seed": self.spec.seed,
        }
        components.update(_flat("params", identity_params(step.params)))
        components.update(_flat("uses", operator.identity()))
        for place, reference in _numbered(step):
            if reference.kind == "model":
                source = self.model(reference.name)
                if source is None:
                    return None
                components[f"models.{place}"] = source.identity
        return components

    def flow_step(self, step: Step, source: str) -> FlowStep | None:
        """Return a row step in the flow's form; None while its model isn't made yet."""
        from caiflow.engine.flow import FlowStep

        own = self.row_components(step)
        operator = self.operator(step)
        if own is None or not isinstance(operator, RowOperator):
            return None
        name = getattr(step.params, "model", None)
        model = self.model(name) if name else None
        identity = model.identity if model else ""
        return FlowStep(
            name=step.name,
            operator=operator,
            source=source,
            identity=digest(own),
            namespace=f"{operator.name}-{identity[:16] or 'none'}",
            model=name,
            model_identity=identity,
            seed=self.spec.seed,
            params=step.params if isinstance(step.params, RowParams) else None,
        )

    def settle(self, step: Step) -> tuple[Components | None, Artifact | None]:
        """Return the step's components and, where the store has it, its artifact, which then counts as made."""
        components = self.components(step)
        artifact = self.store.artifact(digest(components)) if components is not None else None
        if artifact is not None:
            self.artifacts[step.name] = artifact
        return components, artifact

    def chain(self, step: Step) -> list[Step]:
        """Return the step and the row steps that stream behind it, in topological order.

        A row step joins its input's chain when whatever else it waits for is made before the chain starts.
        """
        members = {step.name: step}
        before = ancestors(self.spec, step.name)
        for other in self.order:
            source = getattr(other.params, "input", None)
            if other.name in members or source not in members or not self._is_row_step(other):
                continue
            if all(name in members or name in before for name in self.edges(other)) and not self._joins_late(other, members):
                members[other.name] = other
        return list(members.values())

    def _joins_late(self, step: Step, members: Mapping[str, Step]) -> bool:
        """Tell whether the step takes more than its `input` from the chain itself (a second edge has to wait)."""
        return sum(1 for r in step.references() if r.name in members) > 1

    def is_row_step(self, name: str) -> bool:
        """Tell whether a step streams rows."""
        return self._is_row_step(self.spec.steps[name])

    def _is_row_step(self, step: Step) -> bool:
        return issubclass(operator_type(step.op), RowOperator)


def _numbered(step: Step) -> Iterator[tuple[str, Any]]:
    """Yield each reference with a place that holds no step's name: keys that name steps count by position."""
    seen: dict[str, int] = {}
    for reference in step.references():
        if reference.key:
            place = ".".join(map(str, reference.path[:-1]))
            seen[place] = seen.get(place, -1) + 1
            yield f"{place}.{seen[place]}", reference
        else:
            yield ".".join(map(str, reference.path)), reference


def _flat(prefix: str, value: Any) -> Components:
    """Return nested mappings as one level of dotted keys, so that a change has a name."""
    if isinstance(value, Mapping):
        flat: Components = {}
        for name, inner in value.items():
            flat.update(_flat(f"{prefix}.{name}", inner))
        return flat
    if isinstance(value, (list, tuple)) and any(isinstance(inner, (Mapping, list, tuple)) for inner in value):
        return _flat(prefix, {str(place): inner for place, inner in enumerate(value)})
    return {prefix: value}


def example_texts(constitution: Constitution) -> list[dict[str, Any]]:
    """Return the few-shot examples as plain values."""
    examples: tuple[Any, ...] = (*constitution.few_shot_critique, *constitution.few_shot_judge)
    return [{name: getattr(example, name) for name in example.__slots__} for example in examples]


def changes(old: Components, new: Components) -> list[tuple[str, Any, Any]]:
    """Return (component, old value, new value) for each that differs; a missing one is None.

    What an operator uses may follow from a parameter or the seed; such a change is named once, where it was written.
    """
    names = dict.fromkeys([*old, *new])
    found = [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
    written = [_without_place(change) for change in found if not change[0].startswith("uses.")]
    return [change for change in found if not change[0].startswith("uses.") or _without_place(change) not in written]


def _without_place(change: tuple[str, Any, Any]) -> tuple[str, Any, Any]:
    return change[0].rpartition(".")[2], *change[1:]


def describe(change: tuple[str, Any, Any]) -> str:
    """Return a change in words: `learning_rate 2e-05 -> 1e-05`, `principle p07 edited`, `input changed`."""
    name, old, new = change
    group, _, rest = name.partition(".")
    if group == "principles":
        return f"principle {rest} {'added' if old is None else 'removed' if new is None else 'edited'}"
    if name == "few_shot":
        return "few-shot examples edited"
    if group == "inputs":
        return f"{rest} changed" if old is not None else f"{rest} is new"
    if group == "models":
        return f"{rest}: another model"
    if group == "operator":
        return f"operator {old} -> {new}"
    short = rest if group in ("params", "uses") else name
    if _HEX.fullmatch(str(new)) or _HEX.fullmatch(str(old)):
        return f"{short} changed"
    return f"{short} {_short(old)} -> {_short(new)}"


_HEX = re.compile(r"[0-9a-f]{32,}")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def make_plan(spec: Spec, store: Store, *, trust_remote_code: bool = False) -> Plan:
    """Return what `run` would do now, and why.

    Raises:
        PlanError: a model can't be found.
    """
    resolver = Resolver(spec, store, trust_remote_code=trust_remote_code)
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
            elif resolver.is_row_step(step.name) and step.params.input in resolver.artifacts:  # type: ignore[attr-defined]
                chain = resolver.chain(step)
                segments.append(tuple(member.name for member in chain))
                planned.update(_plan_chain(resolver, chain, ledgers, previous))
            else:
                if resolver.is_row_step(step.name) and not any(step.name in segment for segment in segments):
                    segments.append(tuple(m.name for m in resolver.chain(step) if m.name not in planned))
                planned[step.name] = _to_run(resolver, step, components, before, planned)
    in_order = tuple(planned[step.name] for step in resolver.order)
    return Plan(in_order, tuple(segments), tuple(shortages(spec)))


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
            from caiflow.engine.ledger import Ledger

            self._open[namespace] = Ledger(self._store.ledger_dir, namespace)
        return self._open[namespace]


def _cached(step: Step, artifact: Artifact, components: Components | None, before: Components | None) -> PlannedStep:
    rows = artifact.rows_out
    return PlannedStep(
        step.name, step.op, "cached", rows, rows or 0, 0, "unchanged", digest(components), components, before, calls=0, tokens=0
    )


def _to_run(
    resolver: Resolver, step: Step, components: Components | None, before: Components | None, planned: Mapping[str, PlannedStep]
) -> PlannedStep:
    waiting = [name for name in resolver.edges(step) if planned[name].state != "cached"]
    reason = _reason(components, before) if components is not None else f"after {', '.join(waiting)}"
    own = resolver.row_components(step)
    if components is None and own is not None and before is not None:
        changed = [c for c in changes(before, own) if c[0].split(".")[0] not in NOT_IN_ROWS]
        reason = "; ".join([*map(describe, changed), reason])
    known = digest(components) if components is not None else None
    return PlannedStep(step.name, step.op, "run", None, 0, None, reason, known, components, before)


def _reason(components: Components, before: Components | None) -> str:
    if before is None:
        return "never run"
    return "; ".join(map(describe, changes(before, components))) or "its result isn't in the store"


def _plan_chain(
    resolver: Resolver, chain: Sequence[Step], ledgers: _Ledgers, previous: Mapping[str, Components]
) -> dict[str, PlannedStep]:
    """Count what the ledger holds for the steps of one chain, whose first step's input is made."""
    from caiflow.engine.counting import count_known
    from caiflow.engine.rows import Rows

    root: Any = chain[0].params
    flow_steps = [resolver.flow_step(step, step.params.input) for step in chain]  # type: ignore[attr-defined]
    known = [flow_step for flow_step in flow_steps if flow_step is not None]
    tallies = count_known(known, Rows(resolver.artifacts[root.input].path), ledgers)
    namespaces = {flow_step.name: flow_step.namespace for flow_step in known}
    planned = {}
    for step in chain:
        components, before = resolver.components(step), previous.get(step.name)
        if step.name in tallies:
            tally = tallies[step.name]
            per_row = tally.tokens / tally.cached if tally.cached else _usual_tokens(ledgers(namespaces[step.name]))
            planned[step.name] = _counted(resolver, step, tally, components, before, per_row)
        else:
            planned[step.name] = PlannedStep(
                step.name, step.op, "run", None, 0, None, "after its model", None, components, before
            )
    return planned


def _counted(
    resolver: Resolver, step: Step, tally: Tally, components: Components | None, before: Components | None, per_row: float
) -> PlannedStep:
    to_run = tally.total - tally.cached
    operator = resolver.operator(step)
    calls = to_run * operator.calls() if isinstance(operator, RowOperator) else None
    own = components if components is not None else resolver.row_components(step)
    causes = []
    if before is not None and own is not None:
        skip = NOT_IN_ROWS if components is None else ()
        causes = [describe(change) for change in changes(before, own) if change[0].split(".")[0] not in skip]
    why = "; ".join(causes) or ("never run" if before is None and not tally.cached else "new or changed rows")
    reason = f"{to_run} of {tally.total} rows: {why}" if to_run else "all rows are in the ledger"
    known = digest(components) if components is not None else None
    state = "partial" if tally.cached else "run"
    tokens = round(per_row * to_run) if per_row or not to_run else None
    return PlannedStep(
        step.name,
        step.op,
        state,
        tally.total,
        tally.cached,
        to_run,
        reason,
        known,
        components,
        before,
        calls=calls,
        tokens=tokens,
    )


def _usual_tokens(ledger: Ledger) -> float:
    """Return the mean tokens of a row that this operator and model had in any run so far; 0 where there was none."""
    payloads = (ledger.get(key) for key in islice(ledger, 500))
    known = [payload["tokens"] for payload in payloads if payload is not None and "tokens" in payload]
    return sum(known) / len(known) if known else 0.0


def previous_components(spec: Spec, store: Store) -> dict[str, Components]:
    """Return each step's components in the latest run under this spec's name that had got so far."""
    import json

    found: dict[str, Components] = {}
    for run in reversed(store.runs()):
        path = run.run_dir / COMPONENTS
        if run.name == spec.name and path.is_file():
            for name, components in json.loads(path.read_text(encoding="utf-8")).items():
                found.setdefault(name, components)
    return found


def shortages(spec: Spec) -> list[str]:
    """Return, in words, what the steps ask for that this machine lacks."""
    gpus, cpus = _gpus(), cores()
    found = []
    for step in spec.steps.values():
        wanted = step.params.resources
        if (wanted.num_gpus or 0) * wanted.workers > gpus:
            found.append(f"{step.name}: asks for {wanted.num_gpus:g} GPUs x {wanted.workers}, this machine has {gpus}")
        if (wanted.num_cpus or 0) * wanted.workers > cpus:
            found.append(f"{step.name}: asks for {wanted.num_cpus:g} CPUs x {wanted.workers}, this machine has {cpus}")
    for name, entry in spec.models.items():
        if (getattr(entry, "num_gpus", None) or 0) > gpus:
            found.append(f"models.{name}: asks for {entry.num_gpus:g} GPUs, this machine has {gpus}")
        if (entry.num_cpus or 0) > cpus:
            found.append(f"models.{name}: asks for {entry.num_cpus} CPUs, this machine has {cpus}")
    return found


def _gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
