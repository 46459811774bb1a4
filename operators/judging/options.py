"""How a model is asked which of several lettered answers is best.

Owns the principles and examples of a row and the reading of a reply (by log-probabilities or text, after a chain of thought or
without). In which orders answers are shown, and what the votes amount to, is in `pairwise` and `listwise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from caiflow.engine.constitution.few_shot import FewShot
from caiflow.engine.errors import Finding, WrongValue
from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Message, Sampling
from caiflow.engine.operator import RowLLM, SamplingParams, Strict, together
from caiflow.operators.judging.prompts import (
    JUDGE_PREFILL,
    LETTERS,
    THOUGHT_END,
    THOUGHT_PREFILL,
    judge_messages,
    whole_instruction,
)
from caiflow.operators.measures.probability import bounded, normalise

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import Constitution, JudgeExample

MOST_OPTIONS = 9
"""A list of options shown at once has (A) to (I) at the most."""
_VERDICT = Sampling(max_tokens=16, stop=("\n",))


class ThoughtSampling(SamplingParams):
    """How the tokens of a thought are drawn."""

    temperature: float = Field(default=1.0, ge=0, le=10)
    """Softmax temperature; 0 is greedy."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest thought in tokens."""


class Thinking(Strict):
    """A chain of thought before each vote."""

    samples: int = Field(default=1, ge=1, le=64)
    """Thoughts sampled for each vote; their probabilities are averaged."""
    clamp: tuple[float, float] | None = (0.4, 0.6)
    """Bounds put on each thought's probability, since thoughts make a judge overconfident; null leaves it as it is."""
    sampling: ThoughtSampling = ThoughtSampling()
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
            raise WrongValue("several samples at temperature 0 are all the same", "raise the temperature or ask for one sample")
        return self


class Judging(Strict):
    """How pairs are judged."""

    swap: bool = True
    """Whether answers are shown in several orders, under the same principle; cancels the judge's preference for a position.

    Without, each set of answers is shown in one order, which is drawn: no candidate is always the first.
    """
    principles: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Principles drawn for each row, each judged on its own and averaged; `all` asks about the whole constitution at once."""
    method: Literal["logprobs", "text"] = "logprobs"
    """`logprobs` compares the options as the next token; `text` reads the answer, one point for each order.

    A server that gives no log-probabilities is asked for the option's letter, which counts as in `text`.
    """
    few_shot: int = Field(default=0, ge=0)
    """Worked judgements of the constitution shown first; each has a principle of its own."""
    examples: Literal["first", "drawn"] = "first"
    """Which worked judgements: the first ones for all rows, or some drawn for each row."""
    chain_of_thought: Thinking | None = None
    """Let the judge reason before each vote; null asks for the answer at once."""

    @property
    def ordering(self) -> dict[str, str]:
        """What of the order of answers counts towards an identity."""
        return {} if self.swap else {"order": "drawn"}


class Instruction(NamedTuple):
    """A judging instruction and the id of its principle (`all` for a whole constitution, empty for a given text)."""

    id: str
    text: str


class Reply(NamedTuple):
    """One answer of the judge: the share (0..1) that it gives to each option, in the order shown; they sum to 1.

    `logprobs` are those of the letters (natural; None for text votes and averages over thoughts). An answer that names no
    option, or several, isn't `parsed` and shares alike.
    """

    shares: tuple[float, ...]
    parsed: bool = True
    logprobs: tuple[float, ...] | None = None
    thought: str = ""
    said: str = ""
    """What couldn't be read."""


class Case(NamedTuple):
    """What all questions about one row share."""

    prompt: Any
    shown: Sequence[tuple[JudgeExample, str]]
    """The worked judgements shown before it, each with its instruction."""
    llm: RowLLM


class OptionsJudge:
    """A judge with its principles and examples chosen: says which of lettered options is best.

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

    def problems(self) -> Iterator[Finding]:
        """Yield what the constitution lacks."""
        given = self._constitution
        if given is None:
            if not self._instruction:
                yield Finding((), "judging needs a constitution or an instruction", "name one under `constitution:`")
            return
        having = len(given.having("judge"))
        wanted = self._how.principles if isinstance(self._how.principles, int) else 1
        if having < wanted and not self._instruction:
            yield Finding(
                ("principles",),
                f"constitution {given.name} has {having} judging texts, got {wanted}",
                "add `judge` or `rule`",
            )
        usable = len(self._few_shot.by_id)
        if self._how.few_shot > usable:
            kind = "worked judgements with a thought" if self._how.chain_of_thought else "worked judgements"
            message = f"constitution {given.name} has {usable} {kind}, got {self._how.few_shot}"
            yield Finding(("few_shot",), message, f"ask for at most {usable}")

    def calls(self, orders: int = 2, rubric: str = "") -> int:
        """Return the calls it takes to judge one set of options in so many orders, or in one where orders aren't changed."""
        votes = 1 if self._how.principles == "all" or self._instruction or rubric else int(self._how.principles)
        thinking = self._how.chain_of_thought
        return votes * (orders if self._how.swap else 1) * (2 * thinking.samples if thinking else 1)

    def identity(self, uid: str, rubric: str = "") -> Any:
        """Return every text that decides the verdicts on one row, beside its own (JSON-able)."""
        shown = [[name, own] for name, own in zip(self._example_ids(uid), (t for _, t in self._shown(uid)), strict=True)]
        return [[i.text for i in self.instructions(uid, rubric)], shown, *self._how.ordering.values()]

    def drawn_order(self, uid: str, answers: Mapping[int, str]) -> tuple[int, ...]:
        """Return the numbers of a row's answers in an order drawn by what they say, wherever they came from."""
        return tuple(sorted(answers, key=lambda number: digest([self._seed, uid, answers[number]])))

    def instructions(self, uid: str, rubric: str = "") -> list[Instruction]:
        """Return the instructions for one row, in the order of their votes; `rubric` is one that it brings along."""
        if rubric:
            return [Instruction("rubric", rubric)]
        if self._instruction:
            return [Instruction("", self._instruction)]
        given = self._given()
        if self._how.principles == "all":
            return [Instruction("all", whole_instruction(given.having("judge")))]
        drawn = given.draw(self._seed, uid, "judge", int(self._how.principles), stage="judge")
        return [Instruction(p.id, p.text("judge")) for p in drawn]

    async def _reply(self, number: int, instruction: Instruction, options: Sequence[str], case: Case) -> Reply:
        """Return the answer to one question; `number` counts a row's questions and keeps their seeds apart."""
        thinking = self._how.chain_of_thought
        messages = judge_messages(case.prompt, instruction.text, options, case.shown, thoughts=thinking is not None)
        letters = LETTERS[: len(options)]
        if thinking is None:
            return await self._ask(messages, JUDGE_PREFILL, letters, case.llm, number)
        samples = range(number * thinking.samples, (number + 1) * thinking.samples)
        replies = await together(self._think(messages, thinking, letters, case.llm, s) for s in samples)
        read = [bounded(reply.shares, thinking.clamp) for reply in replies if reply.parsed]
        mean = tuple(sum(shares) / len(read) for shares in zip(*read, strict=True)) if read else _alike(letters)
        unread = next((reply.said for reply in replies if reply.said), "")
        return Reply(mean, bool(read), None, "\n\n".join(reply.thought for reply in replies), unread)

    async def _think(self, messages: Sequence[Message], thinking: Thinking, letters: str, llm: RowLLM, sample: int) -> Reply:
        sampling = thinking.sampling.model_copy(update={"stop": (*thinking.sampling.stop, THOUGHT_END.strip(" ("))})
        answer = await llm.chat(messages, sampling.sampling(), sample=sample, prefill=THOUGHT_PREFILL)
        thought = answer.text.strip()
        reply = await self._ask(messages, f"{THOUGHT_PREFILL} {thought}{THOUGHT_END}", letters, llm, sample)
        return reply._replace(thought=thought)

    async def _ask(self, messages: Sequence[Message], prefill: str, letters: str, llm: RowLLM, sample: int) -> Reply:
        from caiflow.operators.judging.phrases import parse_choice

        if self._how.method == "logprobs":
            answer = await llm.pick(messages, tuple(letters), prefill=prefill)
            if (given := answer.logprobs) is not None:
                shares = normalise(given)
                return Reply(tuple(shares[letter] for letter in letters), True, tuple(given[letter] for letter in letters))
        else:
            answer = await llm.chat(messages, _VERDICT, sample=sample, prefill=prefill)
        named = parse_choice(answer.text, letters)
        return (
            Reply(tuple(float(letter == named) for letter in letters))
            if named
            else Reply(_alike(letters), parsed=False, said=answer.text)
        )

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
            raise WrongValue("judging needs a constitution", "name one under `constitution:`")
        return self._constitution


def _alike(letters: str) -> tuple[float, ...]:
    return (1 / len(letters),) * len(letters)
