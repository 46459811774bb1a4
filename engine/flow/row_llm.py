"""The model as one row sees it: seeds, retries, and the calls that are already paid for.

Owns the key of one call. Asks an engine through its client; knows no Ray and no LLM library.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple

from caiflow.engine.errors import AskAnewError, EngineError
from caiflow.engine.flow.claiming import claimed
from caiflow.engine.flow.outcomes import Asked, FlowStep
from caiflow.engine.flow.sample import NOTHING, Sample
from caiflow.engine.flow.unread import READ, doubtful_answer
from caiflow.engine.identity import compact, started
from caiflow.engine.llm.base import Completion, Message, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.served.taught import ASK_ANEW
from caiflow.engine.operator import RowLLM
from caiflow.engine.store.ledger import Ledger
from caiflow.engine.store.sampled import keep_sampled


@dataclass(slots=True)
class Tally:
    """What became of a step's rows; all are counts of rows except `calls` and `reused_calls` (calls) and the tokens."""

    total: int = 0
    done: int = 0
    cached: int = 0
    dropped: int = 0
    failed: int = 0
    may_pass: int = 0
    rows_out: int = 0
    calls: int = 0
    reused_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens: int = 0
    drop_reasons: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    said: str = ""
    """What the model answered to a row that was dropped for it."""
    failure: str = ""
    """What the first row failed of."""
    error: str = ""
    """The same, where more rows failed than may."""
    sample: Sample = NOTHING

    def finished(self) -> int:
        """Return the number of rows that need no more work."""
        return self.done + self.cached + self.dropped + self.failed

    def join(self, later: Tally) -> Tally:
        """Return what became of these rows and of `later` ones together."""
        counts = {name: getattr(self, name) + getattr(later, name) for name in COUNTS}
        reasons = Counter(self.drop_reasons) + Counter(later.drop_reasons)
        texts = {name: getattr(self, name) or getattr(later, name) for name in ("said", "failure", "error")}
        return Tally(**counts, drop_reasons=defaultdict(int, reasons), **texts, sample=later.sample)


COUNTS = tuple(one.name for one in fields(Tally) if one.type == "int")


def call_key(model_identity: str, request: Request) -> bytes:
    """Return the ledger key of one model call; the row is in the request's seed."""
    sampling = request.sampling
    parts = (request.prompt, request.prefill, request.choices, request.template, tuple(sampling))
    kind = "score" if request.score else "classify" if request.classify else "call"
    return started(kind, model_identity).key(compact(parts), str(request.seed))


class Asker(NamedTuple):
    """What all calls of a row in a step share: what seeds and keys are made of, who answers, and how the row goes on.

    `turn` is the row's place among all (-1 where it has none), `more` how many calls follow each at the most.
    """

    operator: str
    seed: int
    model_identity: str
    turn: int = -1
    retries: int = 3
    served: bool = False
    more: int = 0

    def of(self, other: Asked) -> Asker:
        """Return the same of another model."""
        return self._replace(model_identity=other.identity, served=other.served)


class LedgeredLLM(RowLLM):
    """The model of one step as one row sees it.

    Calls of operators that make several per row are kept one by one, so that a kill loses only those in flight. With `sampled`,
    the ids of whole replies in a conversation are kept there.
    """

    def __init__(
        self,
        client: EngineClient,
        ledger: Ledger | None,
        asker: Asker,
        uid: str,
        tally: Tally,
        sampled: Ledger | None = None,
    ) -> None:
        self.others: Mapping[str, LedgeredLLM] = {}
        """The step's other models, by name."""
        self._client = client
        self._ledger = ledger
        self._asker = asker
        self._uid = uid
        self._tally = tally
        self._sampled = sampled
        self._retries = asker.retries
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """Tokens of all calls that were made for the row, of all models."""
        return self._tokens + sum(other.tokens for other in self.others.values())

    def other(self, model: str) -> LedgeredLLM:
        """Return another model that the step names, as the same row sees it."""
        return self.others[model]

    async def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),
        *,
        sample: int = 0,
        prefill: str = "",
        template: str = "",
    ) -> Completion:
        """Return the assistant's next turn."""
        return await self._ask(Request(tuple(messages), sampling, self._seed(sample), prefill, template=template))

    async def complete(self, text: str, sampling: Sampling = Sampling(), *, sample: int = 0) -> Completion:
        """Return the continuation of a plain text."""
        return await self._ask(Request(text, sampling, self._seed(sample)))

    async def choose(
        self, messages: Sequence[Message] | str, choices: Sequence[str], *, prefill: str = ""
    ) -> Mapping[str, float]:
        """Return the log-probability of each choice as the next token."""
        answer = await self.pick(messages, choices, prefill=prefill)
        if answer.logprobs is None:
            raise EngineError("engine: answered without log-probabilities", "use `method: text`", kind="no_logprobs")
        return answer.logprobs

    async def pick(self, messages: Sequence[Message] | str, choices: Sequence[str], *, prefill: str = "") -> Completion:
        """Return the log-probability of each choice as the next token, or the text of who gives none."""
        prompt = messages if isinstance(messages, str) else tuple(messages)
        return await self._ask(Request(prompt, seed=self._seed(0), prefill=prefill, choices=tuple(choices)))

    async def score(self, prompt: Sequence[Message] | str, *, prefill: str = "") -> Completion:
        """Return `prompt_logprobs` of what an assistant says in a conversation, or of a plain text, or of the prefill alone."""
        answer = await self._ask(Request(prompt if isinstance(prompt, str) else tuple(prompt), prefill=prefill, score=True))
        if answer.prompt_logprobs is None:
            raise EngineError("engine: answered without the prompt's log-probabilities", "ask another", kind="no_logprobs")
        return answer

    async def classify(self, prompt: Sequence[Message] | str) -> Mapping[str, float]:
        """Return the log-probability of each label of a classifier for a conversation or a plain text."""
        asked = prompt if isinstance(prompt, str) else tuple(prompt)
        answer = await self._ask(Request(asked, Sampling(max_tokens=1), classify=True))
        if answer.logprobs is None:
            said = "engine: answered without labels, as models that write texts do"
            raise EngineError(said, "ask for `replies` instead of a `label`, or name a classifier", kind="no_labels")
        return answer.logprobs

    def _seed(self, sample: int) -> int:
        step = self._asker
        made = started("seed", str(step.seed), step.operator, step.model_identity).key(self._uid, str(sample))
        return int.from_bytes(made[:4], "little") >> 1

    async def _ask(self, request: Request) -> Completion:
        ledger = self._ledger
        if ledger is None:
            return await self._ask_engine(request)
        if request.score or request.classify:  # without a seed: another row's call may be the very same
            ledger = ledger.common if ledger.common_at_hand else await asyncio.to_thread(_common, ledger)
        kept_as = call_key(self._asker.model_identity, request)
        async with claimed(ledger, kept_as, partial(self._kept, ledger, kept_as)) as kept:
            if kept is None:
                answer = await self._ask_engine(request)
                given = {name: value for name, value in zip(_COMPLETION, answer, strict=False) if value is not None}
                ledger.append(kept_as, {**given, **(READ if self._asker.served else {})})
                return answer
        self._tally.reused_calls += 1
        return kept

    def _kept(self, ledger: Ledger, kept_as: bytes) -> Completion | None:
        kept = ledger.get(kept_as)
        if kept is None or (self._asker.served and doubtful_answer(kept)):
            return None
        return known if not _unsound(known := Completion(**{name: kept[name] for name in kept if name not in READ})) else None

    async def _ask_engine(self, request: Request) -> Completion:
        asked = request.of_row(self._asker.turn, self._asker.more)
        for attempt in itertools.count():
            self._tally.calls += 1
            answer = await self._client.ask(asked)
            if isinstance(answer, Completion):
                self._count(answer)
                answer = _unsound(answer) or answer
            if isinstance(answer, Completion):
                if self._sampled is not None and answer.ids and not (isinstance(request.prompt, str) or request.prefill):
                    keep_sampled(self._sampled, answer.text, answer.ids)
                return answer
            if answer.kind == ASK_ANEW:
                raise AskAnewError(answer.message)
            if not answer.retry or not self._retries:
                raise answer
            self._retries -= 1  # of the row, not of the call: each costs
            await asyncio.sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _count(self, answer: Completion) -> None:
        self._tally.prompt_tokens += answer.prompt_tokens
        self._tally.completion_tokens += answer.completion_tokens
        self._tokens += answer.prompt_tokens + answer.completion_tokens


def asked_apart(step: FlowStep, clients: Mapping[str, EngineClient], uid: str) -> LedgeredLLM:
    """Return the models of a step as a row sees them in a run, for whoever keeps nothing of their answers."""
    return seen_by_row(step, clients, uid, Tally())


def seen_by_row(
    step: FlowStep,
    clients: Mapping[str, EngineClient],
    uid: str,
    tally: Tally,
    ledgers: Sequence[Ledger | None] = (None, None),
    **place: int,
) -> LedgeredLLM:
    """Return the models of a step as a row sees them, given the ledgers of its calls and of the ids of its own model."""
    retries = step.params.retries if step.params else 3
    asker = Asker(step.operator.name, step.seed, step.model_identity, retries=retries, served=step.served, **place)
    of_calls, sampled = ledgers
    llm = LedgeredLLM(clients[step.model or ""], of_calls, asker, uid, tally, sampled)
    llm.others = {
        name: LedgeredLLM(clients[other.client], of_calls, asker.of(other), uid, tally) for name, other in step.others.items()
    }
    return llm


def _unsound(answer: Completion) -> EngineError | None:
    """Return what is wrong with an answer's log-probabilities: one that is no number, or above 0, says nothing."""
    if answer.logprobs is None and answer.prompt_logprobs is None:
        return None
    values = [*(answer.logprobs or {}).values(), *(answer.prompt_logprobs or ())]
    wrong = next((value for value in values if math.isnan(value) or value > _ABOVE_ONE), None)
    if wrong is None:
        return None
    said = f"engine: a log-probability is {wrong}"
    return EngineError(said, "try another `dtype`, or judge by text", kind="bad_answer", retry=True)


_ABOVE_ONE = 0.01
"""Rounding may put the logarithm of a probability of 1 a little above 0."""
_COMPLETION = Completion._fields[:-1]
"""What the ledger keeps of an answer: all but its ids, which are kept by its words."""


def _common(ledger: Ledger) -> Ledger:
    """Return the records of a whole group; opening them reads those of others, which may be many."""
    return ledger.common


class NoLLM(RowLLM):
    """Stands for the model of a step that names none."""

    tokens = 0

    def __init__(self, step: str) -> None:
        self._step = step

    def _refuse(self) -> Exception:
        return ValueError(f"{self._step}: the operator asks a model, but has no `model` field")

    async def chat(self, *_: Any, **__: Any) -> Completion:
        """Refuse."""
        raise self._refuse()

    async def complete(self, *_: Any, **__: Any) -> Completion:
        """Refuse."""
        raise self._refuse()

    async def choose(self, *_: Any, **__: Any) -> Mapping[str, float]:
        """Refuse."""
        raise self._refuse()

    async def score(self, *_: Any, **__: Any) -> Completion:
        """Refuse."""
        raise self._refuse()

    async def classify(self, *_: Any, **__: Any) -> Mapping[str, float]:
        """Refuse."""
        raise self._refuse()
