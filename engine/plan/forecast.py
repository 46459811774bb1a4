"""What the calls of a spec will take, before any is paid for: tokens of prompts, those that are shared, those of answers.

Rows walk through their steps as in a run, with stand-ins for the answers that are still to come: what the same operator and
model said before, or, where nothing was said yet, texts as long as they may be. Tables between them are made where their rows
are here. Starts no engine.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.errors import CaiflowError, UnreachableError
from caiflow.engine.flow.counting import count_until
from caiflow.engine.flow.cutting import Cut, Tried
from caiflow.engine.flow.outcomes import Asked, FlowStep, Outcome, replay, spread
from caiflow.engine.flow.row_llm import Asker, NoLLM
from caiflow.engine.flow.standing_in import ByCharacters, ByTokenizer, Foreseen, Said, Speaker, StandInLLM, answers_seen
from caiflow.engine.llm.order.blocks import Prefixes
from caiflow.engine.llm.served.budget import Prices, price
from caiflow.engine.operator import (
    Ask,
    Expected,
    Job,
    LLMs,
    MetricsOperator,
    Operator,
    RowDropped,
    RowOperator,
    TableOperator,
)
from caiflow.engine.plan.foresight import Foresight
from caiflow.engine.rows.columns import Columns, Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.spec.graph import chosen
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.store.ledger import Ledger, ledger_name

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource
    from caiflow.engine.spec.grammar import Spec, Step
    from caiflow.engine.store.artifacts import Store

MOST_ROWS = 1000
"""Rows of a table that are walked through; what further rows take is told from the second half of these."""
GPU_BLOCK, CPU_BLOCK = 16, 128
"""Tokens of a block of vLLM's cache by default."""


class Forecast(NamedTuple):
    """What one step's calls to one model take, in tokens.

    `prompt` are those of the prompts, of which `computed` are left where each prefix is computed once; `completion` those of
    the answers, at most so many where `at_most`: no answer was seen yet that could tell how long they get, or no row that could
    tell how many it takes `until` enough pass. `seconds` are of the
    answers alone, `cost` by the model's `prices`.
    """

    step: str
    model: str
    calls: int
    prompt: int
    computed: int
    completion: int
    at_most: bool
    seconds: float | None = None
    cost: float | None = None


class Forecasts(NamedTuple):
    """Of each step that asks, and the steps of which nothing can be said, with why."""

    steps: tuple[Forecast, ...]
    unknown: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return what `plan --json` adds."""
        return {"forecast": [step._asdict() for step in self.steps], "not_foreseen": dict(self.unknown)}


def foresee(
    spec: Spec,
    store: Store,
    *,
    until: str | None = None,
    tokens_per_second: float | None = None,
    gpus: bool = False,
    allowed: Permissions = Permissions(),
) -> Forecasts:
    """Return what a run of the spec, or of its steps up to one, would take now.

    `tokens_per_second` of answers, over all calls at once, give the seconds; else those that the step's last run made.

    Raises:
        PlanError: a model can't be found.
        SpecError: there is no step `until`.
    """
    wanted = chosen(spec, until)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="caiflow-forecast-")))
        walk = _Walk(Foresight(spec, store, trust_remote_code=False, allowed=allowed), scratch, stack, gpus=gpus)
        asyncio.run(walk.all(wanted))
    rates = _rates(spec, store)
    told = []
    for (step, model), found in walk.found.items():
        entry = spec.models.get(model)
        prices = Prices(**entry.prices.model_dump()) if entry and entry.prices else None
        cost = price(found.prompt_tokens, found.completion_tokens, prices).micros / 1e6 if prices else None
        rate = tokens_per_second or rates.get(step)
        counts = (found.calls, found.prompt_tokens, found.computed_tokens, found.completion_tokens)
        told.append(
            Forecast(
                step,
                model,
                *counts,
                bool(found.supposed) or step in walk.bounded,
                found.completion_tokens / rate if rate else None,
                cost,
            )
        )
    return Forecasts(tuple(told), walk.unknown)


class _Walk:
    """Goes through the steps in order, holding the rows that each made or would make."""

    def __init__(self, resolver: Foresight, scratch: Path, stack: ExitStack, *, gpus: bool) -> None:
        self.found: dict[tuple[str, str], Foreseen] = {}
        self.unknown: dict[str, str] = {}
        self.bounded: set[str] = set()
        """The steps that end where enough rows pass, of which none is known to."""
        self._resolver = resolver
        self._scratch = scratch
        self._stack = stack
        self._block = GPU_BLOCK if gpus else CPU_BLOCK
        self._tables: dict[str, _Table] = {}
        self._speakers: dict[str, Speaker] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._answers: dict[str, list[Said]] = {}

    async def all(self, wanted: Collection[str]) -> None:
        """Go through the wanted steps."""
        for step in self._resolver.order:
            _, artifact = self._resolver.settle(step)
            operator = self._resolver.spec.operators[step.name]
            if artifact is not None and operator.kind == "rows":
                self._keep(step.name, Rows(artifact.path))
            elif artifact is None and step.name in wanted:
                try:
                    await self._one(step, operator)
                except (CaiflowError, ValueError, KeyError, TypeError, OSError) as error:
                    self._leave_out(step, operator, str(error) or type(error).__name__)

    def _leave_out(self, step: Step, operator: Operator[Any], why: str) -> None:
        """Note that nothing can be said of a step, where it asks a model."""
        if isinstance(operator, MetricsOperator) or (isinstance(operator, RowOperator) and hasattr(step.params, "model")):
            self.unknown[step.name] = why

    async def _one(self, step: Step, operator: Operator[Any]) -> None:
        names = {reference.name for reference in step.references() if reference.kind == "rows"}
        inputs = {name: self._tables[name] for name in sorted(names) if name in self._tables}
        if lacking := names - inputs.keys():
            why = f"the rows of {', '.join(sorted(lacking))} aren't known; make them first, with `run --until`"
            self._leave_out(step, operator, why)
        elif isinstance(operator, RowOperator):
            await self._through(step, operator)
        elif isinstance(operator, TableOperator):
            self._table(step, operator, inputs)
        elif isinstance(operator, MetricsOperator):
            await self._measured(step, operator, inputs)

    def _keep(self, name: str, rows: Rows, total: int | None = None, *, foreseen: bool = False) -> None:
        total = rows.num_rows if total is None else total
        if rows.num_rows > MOST_ROWS:
            with RowsWriter(self._scratch / "first" / name, dict(rows.columns)) as out:
                out.write_rows(rows.pylist(limit=MOST_ROWS))
            rows = Rows(self._scratch / "first" / name)
        self._tables[name] = _Table(rows, total, foreseen)

    def _table(self, step: Step, operator: TableOperator[Any], inputs: Mapping[str, _Table]) -> None:
        """Make a table; where it depends on one that is foreseen, every row is taken to stay."""
        foreseen = any(table.foreseen for table in inputs.values())
        if foreseen and len(inputs) == 1:
            (self._tables[step.name],) = inputs.values()
            return
        if not inputs and operator.expects({}) is None:
            return  # a source that isn't here, or is large: it is loaded by `run --until`
        rows = {name: table.rows for name, table in inputs.items()}
        place = self._scratch / "tables" / step.name
        place.mkdir(parents=True)
        known = {name: Columns(found.columns) for name, found in rows.items()}
        with RowsWriter(place, dict(operator.columns(known).types)) as out:
            operator.table(Job(place, rows, seed=self._resolver.spec.seed), out)
        share = max((table.share for table in inputs.values()), default=1.0)
        self._keep(step.name, Rows(place), round(Rows(place).num_rows * share), foreseen=foreseen)

    async def _through(self, step: Step, operator: RowOperator[Any]) -> None:
        flow_step = self._resolver.flow_step(step) or _unmade(step, operator, self._resolver.spec.seed)
        table, made, cut = self._tables[step.input], list[Row](), self._resolver.cut_of([step])
        total = min(table.total, self._wanted(step, cut)) if cut else table.total
        rows = table.rows.pylist(limit=total)
        counted = {name: Foreseen() for name in flow_step.clients}
        half = dict(counted)
        for place, row in enumerate(rows):
            half = {name: replace(one) for name, one in counted.items()} if place == len(rows) // 2 else half
            made += await self._made(flow_step, row, counted)
        with RowsWriter(self._scratch / "rows" / step.name) as out:
            out.write_rows(made)
        share = total / max(1, len(rows))
        self._keep(step.name, Rows(self._scratch / "rows" / step.name), round(len(made) * share), foreseen=True)
        for name in [name for name, one in counted.items() if one.calls]:
            more = (total - len(rows)) / (len(rows) - len(rows) // 2)
            self.found[step.name, name] = counted[name].extended(half[name], more)

    def _wanted(self, step: Step, cut: Cut) -> int:
        """Return how many rows a chain takes that ends where enough pass, as they passed so far; where none did yet, all."""
        chain = self._resolver.chain(step)
        known = [found for member in chain if (found := self._resolver.flow_step(member)) is not None]
        most, tried = cut.until.at_most or self._tables[step.input].total, Tried()
        if len(known) == len(chain):
            source = self._tables[step.input].rows
            _, tried = count_until(known, source, self._ledger, cut, whole=True)
        if not tried.rows:
            self.bounded |= {member.name for member in chain}
            return most
        return min(most, tried.rows + tried.further(cut.until))

    async def _made(self, step: FlowStep, row: Row, counted: Mapping[str, Foreseen]) -> list[Row]:
        """Return the rows that one becomes."""
        view = step.view(row)
        ledger = self._ledger(step.namespace) if step.namespace else None
        outcome = replay(step, step.row_key(view), ledger) if ledger else None
        if outcome is None:
            llm = self._stand_ins(step, str(row["uid"]), counted) if step.model else NoLLM(step.name)
            try:
                given = await step.operator.row(view, llm)
            except (RowDropped, CaiflowError):
                return []
            outcome = Outcome(rows=tuple(given) if isinstance(given, list) else (given,))
        return spread(row, outcome, step.operator.outdates()) if outcome.rows else []

    async def _measured(self, step: Step, operator: MetricsOperator[Any], inputs: Mapping[str, _Table]) -> None:
        if operator.calls_expected({name: Expected(table.total) for name, table in inputs.items()}) is None:
            self.unknown[step.name] = "what it asks can't be told beforehand"
            return
        place = self._scratch / "figures" / step.name
        place.mkdir(parents=True)
        models = {reference.name: self.source(reference.name) for reference in step.references() if reference.kind == "model"}
        asked = _Asked(self, operator, self._resolver.spec.seed)
        rows = {name: table.rows for name, table in inputs.items()}
        await operator.measure(Job(place, rows, models, seed=self._resolver.spec.seed), asked)
        share = max((table.share for table in inputs.values()), default=1.0)
        found = {(step.name, model): counted.extended(Foreseen(), share - 1) for model, counted in asked.counted.items()}
        self.found |= {place: counted for place, counted in found.items() if counted.calls}

    def _stand_ins(self, step: FlowStep, uid: str, counted: Mapping[str, Foreseen]) -> StandInLLM:
        """Return the models of a step as one of its rows sees them."""
        asker, model = Asker(step.operator.name, step.seed, step.model_identity, served=step.served), step.model or ""
        llm = self.stand_in(step.operator, model, asker, uid, counted[model])
        llm.others = {
            name: self.stand_in(step.operator, name, asker.of(other), uid, counted[name], step.namespace)
            for name, other in step.others.items()
        }
        return llm

    def stand_in(
        self, operator: Operator[Any], model: str, asker: Asker, uid: str, counted: Foreseen, namespace: str = ""
    ) -> StandInLLM:
        """Return a model as one row of a step sees it."""
        source = self.source(model)
        namespace = namespace or ledger_name(operator.name, source.identity)
        if namespace not in self._answers:
            self._answers[namespace] = answers_seen(operator, self._ledger(namespace))
        kept = self._ledger(namespace) if asker.model_identity else None
        return StandInLLM(self._speaker(model, source), self._answers[namespace], counted, kept, asker, uid)

    def source(self, name: str) -> ModelSource:
        """Return a model, or that which it is trained from while it isn't made."""
        while (found := self._resolver.model(name)) is None:
            if name in self._resolver.unreached:
                raise UnreachableError(self._resolver.unreached[name])
            name = getattr(self._resolver.spec.steps[name].params, "model", "")
        return found

    def is_made(self, name: str) -> bool:
        """Return whether a model is there."""
        return self._resolver.model(name) is not None

    def _speaker(self, name: str, source: ModelSource) -> Speaker:
        if name not in self._speakers:
            from caiflow.engine.llm.files import load_renderer

            block = (source.options.get("engine_args") or {}).get("block_size") or self._block
            layout = ByCharacters() if source.served else ByTokenizer(load_renderer(source))
            self._speakers[name] = Speaker(layout, Prefixes(block))
        return self._speakers[name]

    def _ledger(self, namespace: str) -> Ledger:
        if namespace not in self._ledgers:
            self._ledgers[namespace] = self._stack.enter_context(Ledger(self._resolver.store.ledger_dir, namespace))
        return self._ledgers[namespace]


class _Table(NamedTuple):
    """The first rows of a step and how many it has in all; `foreseen` where stand-ins are in them."""

    rows: Rows
    total: int
    foreseen: bool

    @property
    def share(self) -> float:
        """How many times the rows at hand the table has."""
        return self.total / max(1, self.rows.num_rows)


class _Asked(LLMs):
    """The models of a step that measures, as it asks them about rows."""

    def __init__(self, walk: _Walk, operator: MetricsOperator[Any], seed: int) -> None:
        self.counted: dict[str, Foreseen] = defaultdict(Foreseen)
        self._walk = walk
        self._operator = operator
        self._seed = seed

    async def map(self, label: str, model: str, rows: Sequence[Row], ask: Ask) -> list[Row]:
        """Return what is made of stand-ins for the answers, row by row."""
        source = self._walk.source(model)
        identity = source.identity if self._walk.is_made(model) else ""
        asker = Asker(f"{self._operator.name}:{label}", self._seed, identity, served=source.served)
        counted = self.counted[model]
        return [await ask(row, self._walk.stand_in(self._operator, model, asker, str(row["uid"]), counted)) for row in rows]


def _unmade(step: Step, operator: RowOperator[Any], seed: int) -> FlowStep:
    """Return a row step whose model isn't made, of which nothing can be in a ledger."""
    model = getattr(step.params, "model", None)
    names = (ref.name for ref in step.references() if ref.kind == "model" and ref.name != model)
    others = {name: Asked(name, "", False) for name in names}
    return FlowStep(step.name, operator, step.input, "", "", model, seed=seed, others=others)


def _rates(spec: Spec, store: Store) -> dict[str, float]:
    """Return the tokens of answers a second that each step made in the last run under this spec's name that had it."""
    import json

    found: dict[str, float] = {}
    for run in store.runs():
        path = run.run_dir / "events.jsonl"
        if run.name != spec.name or not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            if '"tokens_per_second"' in line and (event := json.loads(line)).get("tokens_per_second"):
                found[event["step"]] = event["tokens_per_second"]
    return found
