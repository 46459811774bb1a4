"""What every step of a spec depends on: the components of its identity, as far as its inputs are already made.

Reads the spec, the store and the models' contents. Says nothing of what is still to do: that is the plan's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from caiflow.engine.constitution.principles import STAGES
from caiflow.engine.errors import DamagedError, PlanError, StepError
from caiflow.engine.field_marks import identity_params
from caiflow.engine.flow.unread import READ
from caiflow.engine.identity import NoIdentityError, digest, plain
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.served.taught import as_taught, in_words, taught_by
from caiflow.engine.operator import Reference, RowOperator, RowParams, TableOperator
from caiflow.engine.plan.changes import SERVERS
from caiflow.engine.plan.consent import named_by_hand, with_typed
from caiflow.engine.plan.model_identity import resolve_model, trained_model
from caiflow.engine.plan.served_name import learn_name
from caiflow.engine.spec.graph import ancestors, chosen, topological, upstream_of
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.training.operator import TrainingOperator

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import Constitution
    from caiflow.engine.flow.cutting import Cut
    from caiflow.engine.flow.outcomes import FlowStep
    from caiflow.engine.operator import Operator
    from caiflow.engine.spec.grammar import ModelEntry, Spec, Step
    from caiflow.engine.store.artifacts import Artifact, Store
    from caiflow.engine.store.bucket import Bucket

KEY_FORMAT = 1
COMPONENTS = "components.json"
"""In a run's folder: the components of every step that was settled, for `why` and the next plan."""
TEXTS = "texts.json"
"""In a run's folder: the principles and examples behind the digests in its components."""
NOT_IN_ROWS = ("inputs", "principles", "few_shot", "until", SERVERS)
"""Groups of components that a row's key holds only as far as they touch that row."""
Components = dict[str, Any]


class Resolver:
    """Answers, for the steps of one spec, what they depend on, as far as their inputs are already made.

    `artifacts` holds the output of every step settled so far; the run adds to it as steps finish. `remade` says of steps
    why their output in the store doesn't count. From `bucket` comes what the store lacks.
    """

    def __init__(
        self, spec: Spec, store: Store, *, trust_remote_code: bool = False, allowed: Permissions = Permissions()
    ) -> None:
        self._operators = dict(spec.operators)
        self.spec = replace(spec, operators=self._operators)
        self.store = store
        self.artifacts: dict[str, Artifact] = {}
        self.remade: dict[str, str] = {}
        self.order: list[Step] = list(topological(spec))
        self._trust = trust_remote_code
        self._allowed = with_typed(spec.models, spec.source, allowed)
        self._entries: dict[str, ModelSource] = {}

    @cached_property
    def bucket(self) -> Bucket | None:
        """Where artifacts are kept beside the store; None where the user has no such place."""
        from caiflow.engine.store.bucket import bucket_here

        return bucket_here()

    def model(self, name: str) -> ModelSource | None:
        """Return a model by the name parameters use; None for a step that isn't trained yet."""
        if name in self.spec.models:
            if name not in self._entries:
                given = self.spec.models[name]
                found = resolve_model(name, given, self.spec.base_dir, store=self.store, trust_remote_code=self._trust)
                self._entries[name] = self._served(given, found) if given.served else found
            return self._entries[name]
        if name not in self.artifacts:
            return None
        return trained_model(self.artifacts[name], self._trained_from(name))

    def _served(self, entry: ModelEntry, found: ModelSource) -> ModelSource:
        """Return a served model as its server wants to be asked, with the place where what it costs is counted."""
        spent = self.store.spent_path(self.spec.name, found.identity)
        taught = self.store.taught_path(entry.address, entry.source)
        if entry.address == entry.source:
            learn_name(entry, taught, self._allowed)
        return as_taught(
            found._replace(options={**found.options, "spent": str(spent), "by_hand": named_by_hand(entry, self._allowed)}),
            taught,
        )

    def ways(self) -> list[str]:
        """Return how served models are asked otherwise than a model here would be, by what their servers taught."""
        served = {name: taught_by(found.options) for name, found in self._entries.items() if self.spec.models[name].served}
        return [f"{name} is asked {told}" for name, taught in served.items() if (told := in_words(taught))]

    def forget_served(self) -> None:
        """Look again at what servers taught."""
        self._entries = {name: found for name, found in self._entries.items() if not self.spec.models[name].served}

    def _trained_from(self, name: str) -> ModelSource | None:
        step = self.spec.steps[name]
        base = getattr(step.params, "model", None)
        return self.model(base) if base else None

    def edges(self, step: Step) -> tuple[str, ...]:
        """Return the steps this one waits for, each once."""
        return upstream_of(step, self.spec)

    def components(self, step: Step) -> Components | None:
        """Return everything that decides the step's output, flat; None while an input isn't made yet."""
        components, until = self._own_components(step), self._until(step)
        return None if components is None or until is None else {**components, **until}

    def _until(self, step: Step) -> Components | None:
        """Return what decides where a step ends before its input does: all that the steps it ends with go by."""
        cut = self.cut(step)
        if cut is None:
            return {}
        members = self.spec.led_up_to[cut.step]
        found = []
        for name in members:
            own = self._own_components(self.spec.steps[name], within=members)
            if own is None:
                return None
            found.append(own)
        last = self.row_components(self.spec.steps[cut.step])
        wanted = {f"until.{name}": value for name, value in cut.until._asdict().items()}
        return {**wanted, "until.steps": digest([*found, last])}

    def cut(self, step: Step) -> Cut | None:
        """Return what ends a row step before its input does; None where all its rows are wanted."""
        last = next((name for name, members in self.spec.led_up_to.items() if step.name in members), None)
        operator = self.spec.operators[last] if last else None
        if last is None or not isinstance(operator, TableOperator):
            return None
        from caiflow.engine.flow.cutting import Cut

        names = (ref.name for ref in self.spec.steps[last].references() if ref.kind == "model")
        return Cut(last, operator, {name: source for name in names if (source := self.model(name)) is not None})

    def cut_of(self, chain: Sequence[Step]) -> Cut | None:
        """Return what ends a chain; None for the rest of one whose first steps have ended already."""
        cut = self.cut(chain[0])
        return cut if cut and self.spec.led_up_to[cut.step][0] == chain[0].name else None

    def _own_components(self, step: Step, within: Collection[str] = ()) -> Components | None:
        """Return what of the components is the step's own; rows of the steps it streams `within` are left out."""
        own = self.row_components(step)
        if own is None:
            return None
        components = dict(own)
        if any(self._asks_a_server(reference) for reference in step.references()):
            components[SERVERS] = READ["read"]
        for place, reference in _numbered(step):
            if reference.kind != "constitution" and reference.name not in (*within, *self.spec.models):
                artifact = self.artifacts.get(reference.name)
                if artifact is None:
                    return None
                components[f"inputs.{place}"] = artifact.content
        constitution = self.spec.operators[step.name].context.constitution
        if constitution is not None and step.goes_by_principles:
            for principle in constitution.principles:
                components[f"principles.{principle.id}"] = digest(principle.identity_for(step.stages))
            components["few_shot"] = digest(example_texts(constitution, step.stages))
        return components

    def _asks_a_server(self, reference: Reference) -> bool:
        entry = self.spec.models.get(reference.name)
        return reference.kind == "model" and entry is not None and entry.served

    def learnt_key(self, step: Step, components: Components) -> str | None:
        """Return the key of what a training learns, whatever form it is saved in; None where there is but one form."""
        operator = self.spec.operators[step.name]
        forms = {f"params.{name}" for name in operator.forms()} if isinstance(operator, TrainingOperator) else ()
        if not forms:
            return None
        return digest({"learnt": 1, **{name: value for name, value in components.items() if name not in forms}})

    def work_key(self, step: Step, components: Components) -> str:
        """Return the key of a training's checkpoints, which its forms share, unless an early version left some of its own."""
        own = digest(components)
        return own if self.store.work_path(own).is_dir() else self.learnt_key(step, components) or own

    def learnt(self, step: Step, components: Components) -> Artifact | None:
        """Return what a training learnt before, where it is kept."""
        key = self.learnt_key(step, components)
        return self._made(step, key) if key else None

    def texts(self) -> dict[str, Any]:
        """Return the principles and few-shot examples of all steps, by the digests that stand for them in their components."""
        found: dict[str, Any] = {}
        for step in self.order:
            constitution = self.spec.operators[step.name].context.constitution
            if constitution is not None and step.goes_by_principles:
                for principle in constitution.principles:
                    unread = set[str](STAGES) - {*step.stages}
                    found[digest(principle.identity_for(step.stages))] = principle.model_dump(exclude=unread)
                examples = example_texts(constitution, step.stages)
                found[digest(examples)] = examples
        return found

    def row_components(self, step: Step) -> Components | None:
        """Return the part of the components that each row's key holds: not the input, not the principles it didn't draw."""
        operator = self._operator(step)
        if operator is None:
            return None
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

    def _operator(self, step: Step) -> Operator[Any] | None:
        """Return the step's operator, with the principles that another step made; None while they aren't there."""
        operator = self.spec.operators[step.name]
        if not step.principles_from:
            return operator
        if (made := self.artifacts.get(step.principles_from)) is None:
            return None
        from caiflow.engine.constitution.load import MADE, load_constitution

        found = load_constitution(MADE, made.path)
        if operator.context.constitution != found:
            operator = type(operator)(operator.params, operator.context._replace(constitution=found))
            self._operators[step.name] = operator
        return operator

    def flow_step(self, step: Step) -> FlowStep | None:
        """Return a row step in the flow's form; None while its model isn't made yet."""
        from caiflow.engine.flow.outcomes import Asked, FlowStep
        from caiflow.engine.store.ledger import ledger_name

        own = self.row_components(step)
        operator = self.spec.operators[step.name]
        if own is None or not isinstance(operator, RowOperator):
            return None
        name = getattr(step.params, "model", None)
        model = self.model(name) if name else None
        identity = model.identity if model else ""
        names = [ref.name for ref in step.references() if ref.kind == "model" and ref.name != name]
        others = {other: source for other in names if (source := self.model(other)) is not None}
        return FlowStep(
            name=step.name,
            operator=operator,
            source=step.input,
            identity=digest(own),
            namespace=ledger_name(operator.name, identity),
            model=name,
            model_identity=identity,
            seed=self.spec.seed,
            params=step.params if isinstance(step.params, RowParams) else None,
            served=model is not None and model.served,
            others={other: Asked(other, source.identity, source.served) for other, source in others.items()},
        )

    def ready_step(self, step: Step) -> FlowStep:
        """Return a row step ready for rows; what its model is trained on is settled.

        Raises:
            PlanError: its model isn't trained yet, or its constitution isn't made.
        """
        models = [ref.name for ref in step.references() if ref.kind == "model"]
        made = [name for name in (*models, step.principles_from) if name in self.spec.steps]
        for needed in self.order:
            if any(needed.name in chosen(self.spec, name) for name in made):
                self.settle(needed)
        found = self.flow_step(step)
        if found is None:
            name = next(name for name in made if name not in self.artifacts)
            what, state, do = ("model", "trained", "train") if name in models else ("constitution", "made", "make")
            told = f"{step.name}: its {what} `{name}` isn't {state} yet"
            raise PlanError(told, f"{do} it first: caiflow run SPEC --until {name}, with the same options")
        return found

    def settle(self, step: Step) -> tuple[Components | None, Artifact | None]:
        """Return the step's components and, where the store has it, its artifact, which then counts as made.

        Raises:
            StepError: what it reads can't be read (any more).
        """
        try:
            components = self.components(step)
        except OSError as error:
            raise StepError(f"{step.name}: can't read {error.filename or 'a file'}: {error.strerror or error}") from error
        except (ValueError, NoIdentityError) as error:
            raise StepError(f"{step.name}: {error}") from error
        artifact = self._made(step, digest(components)) if components is not None else None
        if artifact is not None:
            self.artifacts[step.name] = artifact
        return components, artifact

    def _made(self, step: Step, name: str) -> Artifact | None:
        """Return an artifact from the store; where that has none that will do, from the bucket."""
        found = self._usable(step, name, self.store.artifact)
        bucket = self.bucket
        if found is None and bucket is not None:
            found = self._usable(step, name, lambda name: bucket.fetch(name, self.store))
            if found is not None:
                self.remade.pop(step.name, None)
        return found

    def _usable(self, step: Step, name: str, look: Callable[[str], Artifact | None]) -> Artifact | None:
        try:
            artifact = look(name)
        except DamagedError as error:
            self.remade[step.name] = error.message
            return None
        if artifact is not None and (why := _unfinished(step, artifact)):
            self.remade[step.name] = why
            return None
        return artifact

    def chain(self, step: Step) -> list[Step]:
        """Return the step and the row steps that stream behind it, in topological order.

        A row step joins its input's chain when whatever else it waits for is made before the chain starts. Behind a step that
        requires something of its rows nothing begins before they are all there.
        """
        if (cut := self.cut(step)) is not None:
            members_of_cut = self.spec.led_up_to[cut.step]
            return [self.spec.steps[name] for name in members_of_cut[members_of_cut.index(step.name) :]]
        members = {step.name: step}
        before = ancestors(self.spec, step.name)
        for other in self.order:
            if other.name in members or other.input not in members or not self._is_row_step(other):
                continue
            if members[other.input].params.require or self.cut(other) is not None:
                continue
            if all(name in members or name in before for name in self.edges(other)) and not self._joins_late(other, members):
                members[other.name] = other
        return list(members.values())

    def _joins_late(self, step: Step, members: Mapping[str, Step]) -> bool:
        """Return whether the step takes more than its `input` from the chain itself (a second edge has to wait)."""
        return sum(1 for r in step.references() if r.name in members) > 1

    def is_row_step(self, name: str) -> bool:
        """Return whether a step streams rows."""
        return self._is_row_step(self.spec.steps[name])

    def _is_row_step(self, step: Step) -> bool:
        return isinstance(self.spec.operators[step.name], RowOperator)


def _unfinished(step: Step, artifact: Artifact) -> str:
    """Return why a row step's sealed output isn't the last word: rows that may yet succeed, or more failed than may."""
    failed, may_pass, allowed = artifact.failed, artifact.may_pass, getattr(step.params, "max_failed", 0)
    if may_pass:
        return f"{may_pass} of its rows failed for a reason that may pass"
    return f"{failed} of its rows failed, and max_failed is {allowed}" if failed > allowed else ""


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
    return {prefix: plain(value, prefix)}


def example_texts(constitution: Constitution, stages: Collection[str]) -> list[dict[str, Any]]:
    """Return the few-shot examples of some stages as plain values."""
    criticised = () if {"critique", "revision"}.isdisjoint(stages) else constitution.few_shot_critique
    examples: tuple[Any, ...] = (*criticised, *(constitution.few_shot_judge if "judge" in stages else ()))
    return [{name: getattr(example, name) for name in example.__slots__} for example in examples]
