"""What calls would take, counted without an engine: prompts are laid out as for the model, and earlier answers stand in for it.

Owns the choice of the stand-ins. Writes no ledger: what one holds already is taken from it, as a run would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from caiflow.engine.flow.row_llm import Asker, LedgeredLLM, Tally, call_key
from caiflow.engine.llm.base import Completion, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.operator import Operator, RowOperator

if TYPE_CHECKING:
    from caiflow.engine.llm.order.blocks import Prefixes
    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.store.ledger import Ledger

_SEEN = 400
"""Earlier answers of an operator and model to draw from."""
_CHARACTERS = 4
"""Characters of English that a token stands for, about, where nobody here has the model's tokenizer."""
_NOBODY = EngineClient([])
"""Stands where an engine would be asked: nothing here asks one."""


@dataclass(slots=True)
class Foreseen:
    """What the calls of a step to a model take, in tokens; `supposed` of them were given answers as long as they may be."""

    calls: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0
    supposed: int = 0

    def extended(self, before: Foreseen, times: float) -> Foreseen:
        """Return these with `times` more of what was added since `before`."""
        values = ((getattr(self, name), getattr(before, name)) for name in Foreseen.__slots__)
        return Foreseen(*(round(now + max(0.0, times) * (now - then)) for now, then in values))


class Layout(Protocol):
    """How a model's prompts become tokens."""

    def prompt(self, request: Request) -> Sequence[int]:
        """Return the tokens of what is sent."""

    def words(self, text: str) -> Sequence[int]:
        """Return the tokens of an answer."""


class ByTokenizer:
    """The model's own tokenizer and chat template."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def prompt(self, request: Request) -> Sequence[int]:
        """Return the tokens of what is sent."""
        return self._renderer.scored(request).ids if request.score else self._renderer.ids(request)

    def words(self, text: str) -> Sequence[int]:
        """Return the tokens of an answer."""
        return self._renderer.words(text)


class ByCharacters:
    """Pieces of equal length: for a model behind a server, whose tokenizer isn't here."""

    def prompt(self, request: Request) -> Sequence[int]:
        """Return the pieces of what is sent."""
        turns = request.prompt
        text = turns if isinstance(turns, str) else "\n".join(f"{turn['role']}\n{turn['content']}" for turn in turns)
        return self.words(text + request.prefill)

    def words(self, text: str) -> Sequence[int]:
        """Return the pieces of an answer."""
        return [hash(text[start : start + _CHARACTERS]) for start in range(0, len(text), _CHARACTERS)]


@dataclass(slots=True)
class Speaker:
    """A model that is to be asked: how its prompts are laid out, and what was computed of them so far."""

    layout: Layout
    prefixes: Prefixes
    _a_word: float = 0.0

    def longest(self, tokens: int, draw: int) -> str:
        """Return one of many texts of about so many tokens."""
        self._a_word = self._a_word or max(1, len(self.layout.words(" word" * 16))) / 16
        return f"{draw % 1000:03}" + " word" * max(1, round(tokens / self._a_word))


class Said(NamedTuple):
    """An earlier answer, and the tokens that it took, with its thought and the words it was stopped by; 0 where nobody told."""

    text: str
    tokens: int = 0


def answers_seen(operator: Operator[Any], ledger: Ledger) -> list[Said]:
    """Return what a model said to an operator in earlier runs."""
    kept = [ledger.get(key) or {} for key in islice(ledger, _SEEN)]
    told = [payload for payload in kept if payload.get("text") and payload.get("logprobs") is None]
    single = [Said(payload["text"], payload.get("completion_tokens") or 0) for payload in told]
    if single or not isinstance(operator, RowOperator):
        return single
    return [Said(text) for payload in kept for row in payload.get("out", ()) for text in operator.answers(row) if text]


class StandInLLM(LedgeredLLM):
    """The model of one step as one row would see it: the ledger's own answers, and stand-ins for those it lacks."""

    def __init__(
        self, speaker: Speaker, seen: Sequence[Said], counted: Foreseen, ledger: Ledger | None, asker: Asker, uid: str
    ) -> None:
        super().__init__(_NOBODY, ledger, asker, uid, Tally())
        self._speaker = speaker
        self._seen = seen
        self._foreseen = counted

    async def _ask(self, request: Request) -> Completion:
        kept_as = call_key(self._asker.model_identity, request)
        kept = self._kept(self._ledger, kept_as) if self._ledger is not None else None
        return kept or self._stand_in(request, int.from_bytes(kept_as, "little"))

    def _stand_in(self, request: Request, draw: int) -> Completion:
        asked, counted = [*self._speaker.layout.prompt(request)], self._foreseen
        counted.calls += 1
        counted.prompt_tokens += len(asked)
        counted.computed_tokens += self._speaker.prefixes.computed(asked)
        if request.score:
            return Completion("", prompt_logprobs=[-1.0], greedy=False)
        if request.choices or request.classify:
            counted.completion_tokens += 1
            picked = draw % max(1, len(request.choices))
            chances = {choice: -0.1 if place == picked else -3.0 for place, choice in enumerate(request.choices)}
            return Completion("", logprobs=chances)
        most = request.sampling.max_tokens
        counted.supposed += not self._seen
        text, took = self._seen[draw % len(self._seen)] if self._seen else Said(self._speaker.longest(most, draw))
        said = [*self._speaker.layout.words(text)]
        self._speaker.prefixes.learn([*asked, *said[:most]])
        counted.completion_tokens += min(most, took or len(said) + bool(self._seen))  # the end of the turn is a token too
        return Completion(text)
