"""How a model is asked which of two answers is better, and how its votes become one probability.

Owns the vote (by log-probabilities or text, after a chain of thought or without), the orders in which a pair is shown, and the
average. Both orders are always asked under the same principle, so that position and principle can't be confounded. Never
decides what a tie or an unreadable answer means for a data set: the operators do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from caiflow.engine.few_shot import FewShot
from caiflow.engine.llm.base import Message, Sampling
from caiflow.engine.operator import RowLLM, SamplingParams, Strict, together
from caiflow.engine.prompts import (
    JUDGE_PREFILL,
    THOUGHT_END,
    THOUGHT_PREFILL,
    judge_messages,
    whole_instruction,
)
from caiflow.engine.statistics import normalise

if TYPE_CHECKING:
    from caiflow.engine.constitution import Constitution, JudgeExample

_VERDICT = Sampling(max_tokens=16, stop=("\n",))
_LEADING = re.compile(r"\s*\(?([A-Z])(?:\)|\s*$|[.:,](?:\s|$))")
_UNDECIDED = re.compile(r"\s*\(?[A-Z]\)?\s*(?:and|or|/|&|,)\s*\(?[A-Z]\)", re.IGNORECASE)
_STATED = re.compile(r"\(([A-Z])\)|answer is:?\s*([A-Z])\b")


class Thinking(Strict):
    """A chain of thought before each vote."""

    samples: int = Field(default=1, ge=1, le=64)
    """Thoughts sampled for each vote; their probabilities are averaged."""
    clamp: tuple[float, float] | None = (0.4, 0.6)
    """Bounds put on each thought's probability, since thoughts make a judge overconfident; null leaves it as it is."""
    sampling: SamplingParams = SamplingParams(temperature=1.0, max_tokens=512)
    """How the thought's tokens are drawn."""

    @field_validator("clamp")
    @classmethod
    def _ordered(cls, clamp: tuple[float, float] | None) -> tuple[float, float] | None:
        if clamp is not None and not 0 <= clamp[0] <= 0.5 <= clamp[1] <= 1:
            raise ValueError(f"must hold two probabilities around 0.5, lower first, got {list(clamp)}")
        return clamp

    @model_validator(mode="after")
    def _differing(self) -> Thinking:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same; raise the temperature or ask for one sample")
        return self


class Judging(Strict):
    """How pairs are judged."""

    swap: bool = True
    """Whether each pair is shown in both orders, under the same principle; cancels the judge's preference for a position."""
    principles: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Principles drawn for each row, each judged on its own and averaged; `all` asks about the whole constitution at once."""
    method: Literal["logprobs", "text"] = "logprobs"
    """`logprobs` compares the options as the next token; `text` reads the answer, one point for each order."""
    few_shot: int = Field(default=0, ge=0)
    """Worked judgements of the constitution shown first; each has a principle of its own."""
    examples: Literal["first", "drawn"] = "first"
    """Which worked judgements: the first ones for all rows, or some drawn for each row."""
    chain_of_thought: Thinking | None = None
    """Let the judge reason before each vote; null asks for the answer at once."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """A judging instruction and the id of its principle (`all` for a whole constitution, empty for a given text)."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Vote:
    """One answer of the judge: the probability (0..1) that it gives to option A as it was shown.

    `swapped` says that option A was the pair's second answer. `logprobs` are those of A and B (natural; None for text votes and
    averages over thoughts). An answer that names neither option, or both, isn't `parsed` and has probability 0.5.
    """

    instruction: str
    swapped: bool
    p_a: float
    parsed: bool = True
    logprobs: tuple[float, float] | None = None
    thought: str = ""

    @property
    def p_first(self) -> float:
        """The probability given to the pair's first answer."""
        return 1 - self.p_a if self.swapped else self.p_a


@dataclass(frozen=True, slots=True)
class Verdict:
    """All votes on one pair; without any (equal answers) it is undecided."""

    votes: tuple[Vote, ...]

    @property
    def p_first(self) -> float:
        """The mean probability that the first answer is better: scores of all orders and principles added, then shared out."""
        return sum(v.p_first for v in self.votes) / len(self.votes) if self.votes else 0.5

    @property
    def unparsable(self) -> int:
        """The number of votes that couldn't be read."""
        return sum(not v.parsed for v in self.votes)


class PairJudge:
    """A judge with its principles and examples chosen: gives a verdict on pairs of answers.

    `instruction` replaces the constitution's judging texts.
    """

    def __init__(self, judging: Judging, constitution: Constitution | None, seed: int, instruction: str = "") -> None:
        self._how = judging
        self._constitution = constitution
        self._seed = seed
        self._instruction = instruction
        pool = constitution.few_shot_judge if constitution else ()
        usable = [e for e in pool if e.thought or judging.chain_of_thought is None]
        self._few_shot: FewShot[JudgeExample] = FewShot(usable, judging.few_shot, judging.examples)

    def problems(self) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """Yield (path, message, hint) for what the constitution lacks."""
        given = self._constitution
        if given is None:
            if not self._instruction:
                yield (), "judging needs a constitution or an instruction", "name one under `constitution:`"
            return
        having = len(given.having("judge"))
        wanted = self._how.principles if isinstance(self._how.principles, int) else 1
        if having < wanted and not self._instruction:
            yield (
                ("principles",),
                f"constitution {given.name} has {having} judging texts, got {wanted}",
                "add `judge` or `rule`",
            )
        usable = len(self._few_shot.by_id)
        if self._how.few_shot > usable:
            kind = "worked judgements with a thought" if self._how.chain_of_thought else "worked judgements"
            message = f"constitution {given.name} has {usable} {kind}, got {self._how.few_shot}"
            yield ("few_shot",), message, f"ask for at most {usable}"

    def calls(self) -> int:
        """Return the calls one pair takes."""
        votes = 1 if self._how.principles == "all" or self._instruction else int(self._how.principles)
        thinking = self._how.chain_of_thought
        return votes * (2 if self._how.swap else 1) * (2 * thinking.samples if thinking else 1)

    def identity(self, uid: str) -> Any:
        """Return every text that decides the verdicts on one row, beside its own (JSON-able)."""
        shown = [[name, own] for name, own in zip(self._example_ids(uid), (t for _, t in self._shown(uid)), strict=True)]
        return [[i.text for i in self.instructions(uid)], shown]

    def instructions(self, uid: str) -> list[Instruction]:
        """Return the instructions for one row, in the order of their votes."""
        if self._instruction:
            return [Instruction("", self._instruction)]
        given = self._given()
        if self._how.principles == "all":
            return [Instruction("all", whole_instruction(given.having("judge")))]
        drawn = given.draw(self._seed, uid, "judge", int(self._how.principles), stage="judge")
        return [Instruction(p.id, p.text("judge")) for p in drawn]

    async def verdict(self, uid: str, prompt: Any, pair: tuple[str, str], llm: RowLLM) -> Verdict:
        """Return the votes on a pair: for each instruction the order as given, then the other; none where both are equal."""
        if pair[0] == pair[1]:
            return Verdict(())
        shown = self._shown(uid)
        orders = (False, True) if self._how.swap else (False,)
        asked = [(i, swapped) for i in self.instructions(uid) for swapped in orders]
        votes = (self._vote(number, i, s, prompt, pair, shown, llm) for number, (i, s) in enumerate(asked))
        return Verdict(tuple(await together(votes)))

    async def _vote(
        self,
        number: int,
        instruction: Instruction,
        swapped: bool,
        prompt: Any,
        pair: tuple[str, str],
        shown: Sequence[tuple[JudgeExample, str]],
        llm: RowLLM,
    ) -> Vote:
        options = (pair[1], pair[0]) if swapped else pair
        thinking = self._how.chain_of_thought
        messages = judge_messages(prompt, instruction.text, options, shown, thoughts=thinking is not None)
        if thinking is None:
            p_a, logprobs = await self._ask(messages, JUDGE_PREFILL, llm, number)
            return Vote(instruction.id, swapped, 0.5 if p_a is None else p_a, p_a is not None, logprobs)
        samples = range(number * thinking.samples, (number + 1) * thinking.samples)
        thoughts = await together(self._think(messages, thinking, llm, s) for s in samples)
        shares = [p for p, _ in thoughts if p is not None]
        mean = sum(clamped(p, thinking.clamp) for p in shares) / len(shares) if shares else 0.5
        return Vote(instruction.id, swapped, mean, bool(shares), None, "\n\n".join(text for _, text in thoughts))

    async def _think(
        self, messages: Sequence[Message], thinking: Thinking, llm: RowLLM, sample: int
    ) -> tuple[float | None, str]:
        sampling = thinking.sampling.model_copy(update={"stop": (*thinking.sampling.stop, THOUGHT_END.strip(" ("))})
        answer = await llm.chat(messages, sampling.sampling(), sample=sample, prefill=THOUGHT_PREFILL)
        thought = answer.text.strip()
        p_a, _ = await self._ask(messages, f"{THOUGHT_PREFILL} {thought}{THOUGHT_END}", llm, sample)
        return p_a, thought

    async def _ask(
        self, messages: Sequence[Message], prefill: str, llm: RowLLM, sample: int
    ) -> tuple[float | None, tuple[float, float] | None]:
        """Return the share of option A (None where it can't be read) and both log-probabilities where those were asked for."""
        if self._how.method == "logprobs":
            given = await llm.choose(messages, ("A", "B"), prefill=prefill)
            return normalise(given)["A"], (given["A"], given["B"])
        answer = await llm.chat(messages, _VERDICT, sample=sample, prefill=prefill)
        letter = parse_choice(answer.text)
        return (None if letter is None else float(letter == "A")), None

    def _shown(self, uid: str) -> list[tuple[JudgeExample, str]]:
        """Return the row's examples, each with its own instruction."""
        ids = self._example_ids(uid)
        return [(e, self._example_instruction(e, name)) for name, e in zip(ids, self._few_shot.named(ids), strict=True)]

    def _example_ids(self, uid: str) -> list[str]:
        return self._few_shot.ids(self._seed, uid)

    def _example_instruction(self, example: JudgeExample, name: str) -> str:
        given = self._given()
        if not example.principle:
            return given.draw(self._seed, name, "judge example", stage="judge")[0].text("judge")
        named = next((p for p in given.principles if p.id == example.principle), None)
        return example.principle if named is None else named.text("judge")

    def _given(self) -> Constitution:
        if self._constitution is None:
            raise ValueError("judging needs a constitution; name one under `constitution:`")
        return self._constitution


def clamped(p: float, bounds: tuple[float, float] | None) -> float:
    """Return a probability within bounds; None leaves it."""
    return p if bounds is None else min(max(p, bounds[0]), bounds[1])


def parse_choice(text: str, letters: str = "AB") -> str | None:
    """Return the one option that an answer names, or None where it names none, several, or one that wasn't offered."""
    if _UNDECIDED.match(text):
        return None
    leading = _LEADING.match(text)
    named = {leading[1]} if leading else {a or b for a, b in _STATED.findall(text)}
    letter = named.pop() if len(named) == 1 else ""
    return letter if letter and letter in letters else None
