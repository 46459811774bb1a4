"""A model as one row sees it, answering by rules: for operators alone, without engine, ledger or seeds."""

from __future__ import annotations

from asyncio import gather
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caiflow.engine.llm.base import Completion, Message, Sampling
from caiflow.engine.operator import Ask, LLMs, RowLLM
from caiflow.engine.rows.columns import Row


@dataclass(frozen=True)
class Asked:
    """One question that the operator put."""

    kind: str
    prompt: Any
    sampling: Sampling = field(default_factory=Sampling)
    sample: int = 0
    prefill: str = ""
    template: str = ""
    choices: tuple[str, ...] = ()

    @property
    def last(self) -> str:
        """The end of what was asked: the last turn, or the text."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


Answering = Callable[[Asked], str | Completion]
Choosing = Callable[[Asked], Mapping[str, float]]
Scoring = Callable[[Asked], Sequence[float]]


@dataclass
class RuleLLM(RowLLM):
    """Answers texts by `say` and choices by `choose_by`; remembers what it was asked in `asked`."""

    say: Answering = lambda asked: f"answer to {asked.last}"
    choose_by: Choosing = lambda asked: dict.fromkeys(asked.choices, -1.0)
    score_by: Scoring = lambda asked: [-1.0] * len(asked.last.split())
    classify_by: Choosing = lambda asked: {}
    asked: list[Asked] = field(default_factory=list)

    async def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),
        *,
        sample: int = 0,
        prefill: str = "",
        template: str = "",
    ) -> Completion:
        return self._answer(Asked("chat", list(messages), sampling, sample, prefill, template))

    async def complete(self, text: str, sampling: Sampling = Sampling(), *, sample: int = 0) -> Completion:
        return self._answer(Asked("complete", text, sampling, sample))

    async def choose(
        self, messages: Sequence[Message] | str, choices: Sequence[str], *, prefill: str = ""
    ) -> Mapping[str, float]:
        prompt = messages if isinstance(messages, str) else list(messages)
        self.asked.append(Asked("choose", prompt, prefill=prefill, choices=tuple(choices)))
        return self.choose_by(self.asked[-1])

    async def score(self, prompt: Sequence[Message] | str, *, prefill: str = "") -> Completion:
        self.asked.append(Asked("score", prompt if isinstance(prompt, str) else list(prompt), prefill=prefill))
        return Completion("", prompt_logprobs=self.score_by(self.asked[-1]), greedy=False)

    async def classify(self, prompt: Sequence[Message] | str) -> Mapping[str, float]:
        self.asked.append(Asked("classify", prompt if isinstance(prompt, str) else list(prompt)))
        return self.classify_by(self.asked[-1])

    def _answer(self, asked: Asked) -> Completion:
        self.asked.append(asked)
        said = self.say(asked)
        return Completion(said) if isinstance(said, str) else said


@dataclass
class RuleLLMs(LLMs):
    """Several such models by name."""

    models: Mapping[str, RuleLLM]
    mapped: list[tuple[str, str, int]] = field(default_factory=list)

    async def map(self, label: str, model: str, rows: Sequence[Row], ask: Ask) -> list[Row]:
        self.mapped.append((label, model, len(rows)))
        return list(await gather(*(ask(row, self.models[model]) for row in rows)))
