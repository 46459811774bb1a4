"""One row on its way through the row steps that lead to a step, with everything that models saw and said.

Asks anew and keeps nothing: no ledger, no artifact, no run. The engines are in this process; one row needs no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import EngineError, PlanError, StepError
from caiflow.engine.flow.outcomes import FlowStep, Outcome, spread
from caiflow.engine.flow.row_llm import NoLLM, asked_apart
from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.operator import RowDropped, RowOperator
from caiflow.engine.rows.columns import Row

if TYPE_CHECKING:
    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.spec.grammar import Spec, Step


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call: what was asked, the text that the model saw with its number of tokens, and the answer.

    `saw` is None of a server, which lays a conversation out by itself; `prompt_tokens` then is what it counted.
    """

    request: Request
    saw: str | None
    prompt_tokens: int
    answer: Completion


@dataclass(frozen=True, slots=True)
class Tried:
    """What one step made of the row: its calls in order, and the columns that it wrote, or why the row was left out.

    `made` has a row for each that the step makes of one; the first goes on.
    """

    step: str
    op: str
    model: str
    exchanges: Sequence[Exchange]
    made: Sequence[Row] = ()
    dropped: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """The row steps on the way to a step, in order, and the steps on it that take tables, which a single row passes by."""

    steps: Sequence[Step]
    passed: Sequence[str] = field(default_factory=tuple)


def way_to(spec: Spec, name: str, given: Row) -> Way:
    """Return the way of a row to the step `name`; it begins behind the last step that writes a column which the row has.

    Raises:
        PlanError: the step doesn't work row by row.
    """
    step = spec.steps[name]
    if not isinstance(spec.operators[name], RowOperator):
        rows = [other for other, found in spec.operators.items() if isinstance(found, RowOperator)]
        raise PlanError(f"{name}: `{step.op}` takes whole tables, not a row", f"name one of {', '.join(rows) or 'none here'}")
    steps, passed = [step], list[str]()
    while (before := str(getattr(step.params, "input", ""))) in spec.steps:
        step, operator = spec.steps[before], spec.operators[before]
        if not isinstance(operator, RowOperator):
            passed.append(before)
        elif any(column in given for column in operator.writes() if column != "prompt"):
            break
        else:
            steps.append(step)
    return Way(steps[::-1], passed[::-1])


def try_row(resolver: Resolver, way: Way, row: Row) -> list[Tried]:
    """Take a row along the way; it ends early where a step leaves the row out.

    Raises:
        PlanError: a model on the way isn't trained yet.
        EngineError: a model can't be loaded.
        StepError: a step failed.
    """
    steps = [resolver.ready_step(step) for step in way.steps]
    names = dict.fromkeys(name for step in steps for name in step.clients)
    sources = {name: source for name in names if (source := resolver.model(name)) is not None}
    with ExitStack() as stack:
        hosts = {name: _host(stack, source) for name, source in sources.items()}
        renderers = {name: _renderer(source) for name, source in sources.items()}
        return asyncio.run(_along(steps, row, hosts, renderers))


def _host(stack: ExitStack, source: ModelSource) -> EngineHost:
    from caiflow.engine.llm.load import load_engine

    return stack.enter_context(closing(EngineHost(partial(load_engine, source))))


def _renderer(source: ModelSource) -> Renderer | None:
    """Return what lays out the texts of a model; None of a server's."""
    from caiflow.engine.llm.files import load_renderer
    from caiflow.engine.llm.load import choose_kind

    return None if choose_kind(source) == "openai" else load_renderer(source)


async def _along(
    steps: Sequence[FlowStep], row: Row, hosts: Mapping[str, EngineHost], renderers: Mapping[str, Renderer | None]
) -> list[Tried]:
    found: list[Tried] = []
    async with AsyncExitStack() as stack:
        heard: _Heard = []
        clients = {name: await stack.enter_async_context(_Listening(name, host, heard)) for name, host in hosts.items()}
        for step in steps:
            made, dropped = await _tried(step, row, clients)
            exchanges = [_exchange(request, answer, renderers[name]) for name, request, answer in heard]
            heard.clear()
            found.append(Tried(step.name, step.operator.name, step.model or "", exchanges, made, dropped))
            if not found[-1].made:
                break
            row = spread(row, Outcome(rows=tuple(found[-1].made)), step.operator.outdates())[0]
    return found


async def _tried(step: FlowStep, row: Row, clients: Mapping[str, EngineClient]) -> tuple[list[Row], str]:
    """Return the rows that a step makes of one, or why there are none."""
    llm = asked_apart(step, clients, row["uid"]) if step.clients else NoLLM(step.name)
    try:
        given = await step.operator.row(step.view(row), llm)
    except RowDropped as drop:
        return [], str(drop)
    except (EngineError, ValueError, KeyError) as error:
        raise StepError(f"{step.name}: {error}") from error
    return given if isinstance(given, list) else [given], ""


def _exchange(request: Request, answer: Completion, renderer: Renderer | None) -> Exchange:
    if renderer is None:
        return Exchange(request, None, answer.prompt_tokens, answer)
    if request.score:
        ids = renderer.scored(request).ids
        return Exchange(request, renderer.tokenizer.decode(ids), len(ids), answer)
    return Exchange(request, renderer.text(request), len(renderer.ids(request)), answer)


_Heard = list[tuple[str, Request, Completion]]
"""What was asked of which model and answered, in order of the answers."""


class _Listening(EngineClient):
    """A client that tells what was asked and answered."""

    def __init__(self, name: str, host: EngineHost, heard: _Heard) -> None:
        super().__init__([LocalLink(host)])
        self._name = name
        self._heard = heard

    async def ask(self, request: Request) -> Answer:
        answer = await super().ask(request)
        if isinstance(answer, Completion):
            self._heard.append((self._name, request, answer))
        return answer


def as_json(tried: Tried) -> dict[str, Any]:
    """Return what a step made of the row as plain values."""
    return {
        "step": tried.step,
        "op": tried.op,
        "model": tried.model or None,
        "calls": [_call(exchange) for exchange in tried.exchanges],
        "made": list(tried.made),
        "dropped": tried.dropped or None,
    }


def _call(exchange: Exchange) -> dict[str, Any]:
    answer, request = exchange.answer, exchange.request
    return {
        "prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt),
        "prefill": request.prefill,
        "saw": exchange.saw,
        "prompt_tokens": exchange.prompt_tokens,
        "sampling": request.sampling._asdict(),
        "seed": request.seed,
        "answer": answer.text,
        "finish": answer.finish,
        "completion_tokens": answer.completion_tokens,
        "logprobs": None if answer.logprobs is None else dict(answer.logprobs),
    }
