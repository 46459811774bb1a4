"""The calls of a spec's steps as the requests of a batch API, and their answers into the ledger as a run would put them.

Rows go through the run's own flow, and through the measures of `evaluate`, on an engine that asks nobody: what it has no answer
for is noted, and waits. So keys, order, what is kept and what is refused are a run's. Only steps whose rows are made can ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from caiflow.engine.errors import AskAnewError, EngineError, PlanError, StepError
from caiflow.engine.flow.row_llm import call_key
from caiflow.engine.flow.stream import BATCHED
from caiflow.engine.llm.base import Answer, Completion, Link, ModelSource, Request
from caiflow.engine.llm.served.batch import Answers, Call, Reply, UnsayableError, request_files
from caiflow.engine.llm.served.budget import price
from caiflow.engine.llm.served.openai import as_listed, dialect_speaker, endpoint_of
from caiflow.engine.llm.served.refusals import PREFILL_FIELDS
from caiflow.engine.llm.served.replies import Again, Passing, keep_lesson, read_reply
from caiflow.engine.operator import MetricsOperator
from caiflow.engine.plan.consent import refuse_unallowed
from caiflow.engine.run.flows import FlowUnit
from caiflow.engine.run.units import MeasureUnit
from caiflow.engine.store.ledger import ledger_name
from caiflow.engine.store.spending import Account, Spent

if TYPE_CHECKING:
    from caiflow.engine.flow.cutting import Cut
    from caiflow.engine.flow.outcomes import FlowStep
    from caiflow.engine.llm.served.chat import Dialect
    from caiflow.engine.llm.served.endpoint import Endpoint
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.spec.grammar import Step
    from caiflow.engine.spec.permissions import Permissions

_AT_ONCE = 256
_PATIENCE_S = 5.0  # of asking a server which it is
_MOST_LESSONS = 8
_RUN = "have them answered: caiflow run SPEC --until {step}"
_APART = "have a `generate` step make these answers and a `grade` step read them, which can ask by batches"
_NO_ANSWERS: Mapping[str, Reply] = {}


@dataclass(slots=True)
class Waiting:
    """One step's calls: those that wait for an answer, those answered, and what was said of those that failed.

    `here` counts those that a model on this machine has yet to answer.
    """

    step: str
    model: str
    calls: dict[str, Call] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    here: int = 0


@dataclass(slots=True)
class Passage:
    """What came of taking a spec's rows as far as answers reach; `lessons` are what servers taught of how they are asked.

    `capped` has in words which calls are more than a cap of their model leaves room for, `first` what models on this machine
    have to answer before more can be asked.
    """

    steps: list[Waiting] = field(default_factory=list)
    base_urls: dict[str, str] = field(default_factory=dict)
    capped: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    lessons: list[str] = field(default_factory=list)
    ledgers: set[str] = field(default_factory=set)


def pass_rows(resolver: Resolver, allowed: Permissions, answers: Mapping[str, Reply] = _NO_ANSWERS) -> Passage:
    """Take rows through their steps with the `answers` there are, by the key of their call; what they give is in the ledger.

    Raises:
        PlanError: a served model's name isn't known.
        EngineError: a model's tokenizer can't be loaded.
    """
    found, servers = Passage(), dict[str, _Server]()
    for chain in _chains(resolver):
        _pass(resolver, lambda: _carry_chain(resolver, chain, allowed, answers), found, servers, _RUN)  # noqa: B023 - called at once
    for step in _measures(resolver):
        _pass(resolver, lambda: _carry_measure(resolver, step, allowed, answers), found, servers, _APART)  # noqa: B023 - called at once
    found.capped += filter(None, (_capped(name, server, found) for name, server in servers.items()))
    return found


def _capped(name: str, server: _Server, found: Passage) -> str:
    """Return in words that a model's cap leaves no room for the calls that wait; nothing where it does."""
    calls = len({key for step in found.steps if step.model == name for key in step.calls})
    most, used = server.endpoint.most, server.spent().calls
    if most.calls is None or used + calls <= most.calls:
        return ""
    left = max(0, most.calls - used)
    return f"{name}: {calls} calls wait, and max_calls leaves {left}; `caiflow import` counts those that were answered"


def require_waiting(passage: Passage) -> None:
    """Refuse a spec of which no call waits.

    Raises:
        PlanError: none does.
    """
    if not any(step.calls for step in passage.steps):
        told = "".join(f"; {line}" for line in passage.first)
        hint = "" if told else "make the rows that they read first: caiflow run SPEC --until STEP"
        raise PlanError(f"no step waits for answers of a served model{told}", hint)


def write_requests(passage: Passage, folder: Path) -> list[str]:
    """Write the calls that wait, a file for each model and kind of call; return the files' names.

    Raises:
        PlanError: an API has no words for a call.
    """
    names = []
    for model, base_url in passage.base_urls.items():
        calls = {key: call for step in passage.steps if step.model == model for key, call in step.calls.items()}
        try:
            for end, content in request_files(base_url, list(calls.values())) if calls else ():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{model}{end}").write_text(content, encoding="utf-8")
                names.append(f"{model}{end}")
        except UnsayableError as lack:
            hint = "judge with `method: text`, or sample without that field"
            raise PlanError(f"{model}: {base_url} takes no {lack}", hint) from lack
    return names


def count_lines(answers: Answers, passage: Passage) -> dict[str, int]:
    """Return what became of each line of the answers; the counts add up to all of them."""
    taken = {key for step in passage.steps for key in step.taken}
    failed = {key for step in passage.steps for key in step.failed} - taken
    unput = {key for key, reply in answers.replies.items() if reply.unput} - taken
    return {
        "taken": len(taken),
        "failed": len(failed - unput),
        "not_carried_out": len(unput),
        "not_asked": len(answers.replies.keys() - taken - failed - unput),
        "doubled": answers.doubled,
        "unreadable": answers.unreadable,
    }


def _chains(resolver: Resolver) -> Iterator[list[Step]]:
    """Yield the chains of row steps whose rows are made and that aren't done."""
    seen: set[str] = set()
    for step in resolver.order:
        if step.name in seen or resolver.settle(step)[1] is not None or not resolver.is_row_step(step.name):
            continue
        if all(name in resolver.artifacts for name in resolver.edges(step)):
            chain = resolver.chain(step)
            seen |= {member.name for member in chain}
            yield chain


def _measures(resolver: Resolver) -> Iterator[Step]:
    """Yield the steps that measure, whose rows and models are made and that aren't done."""
    for step in resolver.order:
        made = all(name in resolver.artifacts for name in resolver.edges(step))
        if made and isinstance(resolver.spec.operators[step.name], MetricsOperator) and resolver.settle(step)[1] is None:
            yield step


def _pass(
    resolver: Resolver,
    carry: Callable[[], tuple[list[_BatchLink], set[str]]],
    found: Passage,
    servers: dict[str, _Server],
    way: str,
) -> None:
    """Carry a chain or a measure out, anew after each lesson of a server; what came of it is `found`.

    `way` says how models on this machine come to answer what has to be answered first.
    """
    for _ in range(_MOST_LESSONS):
        try:
            links, ledgers = carry()
        except AskAnewError as lesson:
            found.lessons.append(str(lesson))
            resolver.forget_served()
            continue
        for link in links:
            if link.server:
                found.steps.append(link.waiting_for)
                found.base_urls[link.waiting_for.model] = link.server.endpoint.base_url
                servers[link.waiting_for.model] = link.server
            elif (here := link.waiting_for).here:
                told = f"{here.step}: {here.model} runs here and has {here.here} calls to answer first"
                found.first.append(f"{told}: {way.format(step=here.step)}")
        found.ledgers |= ledgers
        return


def _carry_chain(
    resolver: Resolver, chain: Sequence[Step], allowed: Permissions, answers: Mapping[str, Reply]
) -> tuple[list[_BatchLink], set[str]]:
    servers: dict[str, _Server] = {}
    links: dict[str, _BatchLink] = {}
    steps: list[FlowStep] = []
    for flow_step in _ready(resolver, chain):
        steps.append(_patient(flow_step))
        for model, client in zip(flow_step.clients, steps[-1].clients, strict=True):
            server = _server(resolver, model, servers, allowed)
            links[client] = _BatchLink(Waiting(flow_step.name, model), server, answers)
    if not any(link.server for link in links.values()):
        return [], set()
    _run(resolver, steps, links, resolver.cut_of(chain) if len(steps) == len(chain) else None)
    return list(links.values()), {step.namespace for step in steps}


def _carry_measure(
    resolver: Resolver, step: Step, allowed: Permissions, answers: Mapping[str, Reply]
) -> tuple[list[_BatchLink], set[str]]:
    """Take a measure as far as answers reach: it stops where some wait, so that no call is asked that a run wouldn't."""
    operator = resolver.spec.operators[step.name]
    assert isinstance(operator, MetricsOperator), step.name
    kinds: dict[str, list[str]] = {"rows": [], "model": [], "constitution": []}
    for reference in step.references():
        kinds[reference.kind].append(reference.name)
    sources = {name: source for name in kinds["model"] if (source := resolver.model(name)) is not None}
    servers: dict[str, _Server] = {}
    links = {name: _BatchLink(Waiting(step.name, name), _server(resolver, name, servers, allowed), answers) for name in sources}
    if not any(link.server for link in links.values()):
        return [], set()
    inputs = {name: resolver.artifacts[name].path for name in kinds["rows"]}
    with TemporaryDirectory() as staged, suppress(StepError):
        asked: dict[str, list[Link]] = {name: [link] for name, link in links.items()}
        MeasureUnit(step.name, operator, inputs, sources, Path(staged), asked, resolver.store.ledger_dir).run(lambda _: None)
    return list(links.values()), {ledger_name(step.op, source.identity) for source in sources.values()}


def _ready(resolver: Resolver, chain: Sequence[Step]) -> Iterator[FlowStep]:
    """Yield the steps of a chain up to where a model isn't trained yet."""
    left_out: set[str] = set()
    for step in chain:
        flow_step = None if step.input in left_out else resolver.flow_step(step)
        if flow_step is None:
            left_out.add(step.name)
        else:
            yield flow_step


def _patient(step: FlowStep) -> FlowStep:
    """Return a step that goes on whatever becomes of a row, with clients of its own."""
    params = step.params.model_copy(update={"retries": 0, "max_failed": 10**12}) if step.params else None
    others = {name: other._replace(client=f"{step.name}/{name}") for name, other in step.others.items()}
    return replace(step, params=params, model=step.name if step.model else None, others=others)


def _run(resolver: Resolver, steps: Sequence[FlowStep], links: Mapping[str, _BatchLink], cut: Cut | None) -> None:
    source = resolver.artifacts[steps[0].source].path
    with TemporaryDirectory() as scratch:
        staged = {step.name: Path(scratch) / step.name for step in steps}
        for folder in staged.values():
            folder.mkdir()
        asked: dict[str, list[Link]] = {name: [link] for name, link in links.items()}
        unit = FlowUnit(steps, source, asked, staged, resolver.store.ledger_dir, cut)
        unit.run(lambda _: None)


@dataclass(frozen=True, slots=True)
class _Server:
    """How calls to one served model are put and read; `known` are the fields that were left out from the start."""

    identity: str
    endpoint: Endpoint
    dialect: Dialect
    known: int

    def spent(self, more: Spent = Spent()) -> Spent:
        """Return what was spent on the model by all runs of the spec, `more` included, whatever the cap."""
        account = Account(self.endpoint.spent)
        try:
            return account.take(more)[0]
        finally:
            account.close()

    def lesson(self) -> EngineError | None:
        """Keep what was learnt of how the server is asked, and return the error for calls by what was known before."""
        return keep_lesson(self.endpoint, self.dialect, self.known)


def _server(resolver: Resolver, name: str, servers: dict[str, _Server], allowed: Permissions) -> _Server | None:
    """Return how a model's server is asked; None of a model that runs here."""
    source = resolver.model(name)
    assert source is not None, name
    if not source.served:
        return None
    if name not in servers:
        endpoint = _endpoint(resolver, name, source, allowed)
        dialect = dialect_speaker(source)(endpoint)
        server = servers[name] = _Server(source.identity, endpoint, dialect, len(dialect.without))
        if not endpoint.continues and not any(resolver.store.ledger_dir.glob(ledger_name("*", source.identity))):
            dialect.leave_out(*PREFILL_FIELDS)  # learnt later, it would make answers that a batch was paid for another model's
            if lesson := server.lesson():
                raise AskAnewError(lesson.message)
    return servers[name]


def _endpoint(resolver: Resolver, name: str, source: ModelSource, allowed: Permissions) -> Endpoint:
    """Return where a model is; its server, where it may be asked and is there, says whether it goes on with a turn."""
    endpoint = endpoint_of(source)
    with suppress(PlanError, EngineError):
        refuse_unallowed({name: resolver.spec.models[name]}, allowed, trust_remote_code=True)
        endpoint = as_listed(endpoint, _PATIENCE_S)
    if not endpoint.model:
        hint = "give the model's name as `source` beside `base_url`"
        raise PlanError(f"models.{name}: {endpoint.base_url} doesn't say which model it has", hint)
    return endpoint


class _BatchLink:
    """A Link (see llm/client.py) that answers one step's calls from what a batch answered, and notes the others."""

    def __init__(self, waiting_for: Waiting, server: _Server | None, answers: Mapping[str, Reply]) -> None:
        self.capacity, self.waiting = _AT_ONCE, ""
        self.waiting_for, self.server = waiting_for, server
        self._answers = answers
        self._ready: list[tuple[int, Answer]] = []

    async def open(self) -> None:
        """Be there."""

    async def revive(self) -> None:
        """Never needed."""

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:  # noqa: ARG002
        """Answer at once; the answers wait to be collected."""
        self._ready += [(number, self._answer(request)) for number, request in requests]

    async def collect(self) -> list[tuple[int, Answer]]:
        """Return what was answered, or wait a little."""
        await asyncio.sleep(0 if self._ready else 0.002)
        ready, self._ready = self._ready, []
        return ready

    def _answer(self, request: Request) -> Answer:
        if self.server is None:
            self.waiting_for.here += 1
            return EngineError("its model runs here", kind=BATCHED)
        server, key = self.server, call_key(self.server.identity, request).hex()
        try:
            server.dialect.learn(request)
            if lesson := server.lesson():
                return lesson
            path, body = server.dialect.call(request)
            reply = self._answers.get(key)
            if reply is None or reply.unput:
                self.waiting_for.calls[key] = Call(key, path, body)
                return EngineError("waits for a batch", kind=BATCHED)
            return self._read(request, body, reply)
        except EngineError as error:
            self.waiting_for.failed[key] = str(error)
            return error

    def _read(self, request: Request, body: Mapping[str, object], reply: Reply) -> Answer:
        assert self.server is not None
        try:
            answer: Completion = read_reply(self.server.dialect, request, body, reply.status, {}, reply.text)
        except (Again, Passing) as trouble:
            if lesson := self.server.lesson():
                return lesson
            path, again = self.server.dialect.call(request)
            self.waiting_for.calls[reply.key] = Call(reply.key, path, again)
            self.waiting_for.failed[reply.key] = str(trouble)
            return EngineError(str(trouble), kind=BATCHED)
        self.waiting_for.taken.add(reply.key)
        self.server.spent(price(answer.prompt_tokens, answer.completion_tokens, self.server.endpoint.prices))
        return answer
