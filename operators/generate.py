"""`generate`: asks a model to answer each row's prompt, once or several times.

Owns what is sent for an answer: system turn, which turns are kept, chat or plain text, prefill, sampling. Never judges answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from caiflow.engine.constitution.in_view import SystemText, shows_principles, with_principles
from caiflow.engine.errors import Finding
from caiflow.engine.health import Measure, Passed
from caiflow.engine.llm.base import Completion, Message, Sampling
from caiflow.engine.operator import SPEED, ColumnName, Expected, RowLLM, RowOperator, SamplingParams, Strict, together
from caiflow.engine.rows.columns import Columns, ColumnType, Row, Turns
from caiflow.engine.rows.turns import ANOTHER_TEMPLATE, refused_systems
from caiflow.operators.drawing import accepting
from caiflow.operators.drawing.accepting import AcceptParams, Drawn
from caiflow.operators.judging.prompts import assistant, conversation_text, turns, with_system
from caiflow.operators.measures import answers, texts

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import CritiqueExample
    from caiflow.engine.llm.tokenizer_files import ModelFiles


class Example(Strict):
    """A prompt and the answer to it that `generate` shows."""

    prompt: str = Field(min_length=1)
    """What the human says."""
    response: str = Field(min_length=1)
    """What the assistant answers."""


class GenerateParams(AcceptParams):
    """Parameters of `generate`."""

    sampling: SamplingParams = SamplingParams()
    """How tokens are drawn."""
    samples: (
        Annotated[int, Field(ge=1, le=1024)] | Annotated[tuple[SamplingParams, ...], Field(min_length=1, max_length=1024)]
    ) = 1
    """Answers per prompt: a number, or a list with each answer's sampling, where fields left out are those of `sampling`."""
    samples_as: Literal["columns", "rows"] = "columns"
    """`columns`: `response` is the first answer and `responses` holds all; `rows`: each answer becomes a row of its own."""
    mode: Literal["chat", "transcript", "raw"] = "chat"
    """`chat` applies the chat template; without one, `transcript` writes `Human:`/`Assistant:` turns and `raw` bare texts."""
    system: SystemText = ""
    """System turn for the answer; replaces the prompt's own and isn't kept in the row. `{{ principles }}` in it becomes the
    constitution's principles."""
    keep: Literal["all", "first", "last"] = "all"
    """Which turns of the prompt are used: all, the first user turn, or the last; `prompt` is rewritten accordingly."""
    prefill: str = ""
    """Beginning of the answer, already written; part of `response`."""
    few_shot: Annotated[int, Field(ge=0)] | tuple[Example, ...] = Field(default=(), json_schema_extra=SPEED)  # in `identity`
    """Examples shown as turns before the prompt, in every `mode`, and not kept in the row: a list, or how many of the
    constitution's, of which the prompt and the first answer are shown."""
    template: str = ""
    """Chat template (Jinja text) instead of the model's own."""
    keep_columns: tuple[ColumnName, ...] = ()
    """Columns about an earlier answer that stay beside the new one, such as `revision`.

    The others are left out: `messages`, earlier samples, and what critique and revise wrote, and a preference between others.
    """


class Generate(RowOperator[GenerateParams]):
    """Answer prompts with a model."""

    name = "generate"
    version = 3
    params_type = GenerateParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the prompt's column."""
        return {self.params.input: ["prompt"]}

    def reads(self) -> Sequence[str]:
        """Return the prompt's column."""
        return ["prompt"]

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the answers' columns, and the prompt where turns of it are left out."""
        columns: dict[str, ColumnType] = {"response": "text", "truncated": "flag", "thought": "text"}
        if self.params.samples_as == "rows":
            columns["sample"] = "integer"
        elif len(self._samplings) > 1:
            columns["responses"] = "texts"
        columns |= accepting.writes(self.params)
        return columns if self.params.keep == "all" else {**columns, "prompt": "messages"}

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the input's columns and the answers'; a prompt cut to one turn has none before it."""
        found = super().columns(inputs)
        return found if self.params.keep == "all" else found.plus({"prompt": "messages"}, {"prompt": Turns(0, 0, 0, 0)})

    def line_for(self, column: str) -> str:
        """Return the line that gives rows a list of answers; empty for any other column."""
        if column != "responses":
            return ""
        return "samples_as: columns" if len(self._samplings) > 1 else "samples: 2"

    def check_models(self, models: Mapping[str, ModelFiles], inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield system turns that the chat template refuses: the prompts' own, or the one given here."""
        given = self.params
        if given.mode != "chat" or given.template:
            return
        if given.system and given.model in models and models[given.model].tokenizer.refuses_system:
            yield Finding(("system",), f"the chat template of `{given.model}` refuses system turns", ANOTHER_TEMPLATE)
        elif not given.system and given.keep == "all":
            yield from refused_systems(inputs, "prompt", given.model, models)

    def check(self) -> Iterator[Finding]:
        """Yield columns to be kept that aren't left out, and checks that there are none of for answers."""
        yield from accepting.problems(self.params, self.measures(), self._samplings)
        yield from self._missing_examples()
        for place, name in enumerate(self.params.keep_columns):
            if name not in accepting.ABOUT_AN_ANSWER:
                yield Finding(("keep_columns", place), f"`{name}` stays anyway", "remove it")

    def outdates(self) -> Collection[str]:
        """Return what the input's rows may have about another answer than the one that is made here."""
        return accepting.ABOUT_AN_ANSWER.difference(self.params.keep_columns)

    def identity(self) -> Mapping[str, Any]:
        """Return each answer's complete sampling, since a list inherits what it leaves out, and examples and principles."""
        shown = {"few_shot": [{"prompt": e.prompt, "response": e.response} for e in self._examples]} if self._examples else {}
        principles = {"system": self._system} if shows_principles(self.params.system) else {}
        return {"samplings": [sampling._asdict() for sampling in self._samplings], **shown, **principles}

    def calls(self) -> int:
        """Return the number of answers, each with all its draws."""
        return len(self._samplings) * self.params.most_draws

    def expects(self, inputs: Mapping[str, Expected]) -> Expected | None:
        """Return a row for each prompt, or for each of its answers."""
        given, number = inputs.get(self.params.input), len(self._samplings)
        as_rows = self.params.samples_as == "rows"
        return given and Expected(given.rows * number if as_rows else given.rows, answers=1 if as_rows else number)

    async def row(self, row: Row, llm: RowLLM) -> Row | list[Row]:
        """Return the answers to one prompt."""
        prompt = _kept(turns(row["prompt"]), self.params.keep)
        drawn = await together(self._drawn(prompt, llm, i, s) for i, s in enumerate(self._samplings))
        made = [self.params.prefill + d.answer.text for d in drawn]
        kept = {} if self.params.keep == "all" else {"prompt": prompt}
        cut = [d.answer.finish == "length" for d in drawn]
        if self.params.samples_as == "rows":
            each = [accepting.columns(self.params, [d]) for d in drawn]
            return [
                {"response": t, "truncated": c, "sample": i, **_thought(d.answer), **kept, **more}
                for i, (t, c, d, more) in enumerate(zip(made, cut, drawn, each, strict=True))
            ]
        kept |= accepting.columns(self.params, drawn)
        several = {"responses": made} if len(made) > 1 else {}
        return {"response": made[0], "truncated": any(cut), **_thought(drawn[0].answer), **several, **kept}

    def metrics(self, rows: Iterable[Row], _dropped: Mapping[str, int]) -> Mapping[str, Any]:
        """Return the answers' mean length in characters and the share of rows cut at `max_tokens`."""
        draws = accepting.Count(1 if self.params.samples_as == "rows" else len(self._samplings))
        count = cut = chars = 0
        for row in rows:
            count, cut, chars = count + 1, cut + bool(row["truncated"]), chars + len(row["response"])
            draws.see(row)
        return {"truncated": cut / count, "mean_chars": chars / count, **draws.figures()} if count else {}

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with answers: each of several samples counts."""
        echoes = answers.copies(
            "prompt", "answers", _answers, lambda row: [answers.last_turn(row["prompt"])],
            "a model trained on them learns to echo", "look at `mode`: a model without chat training needs `transcript`",
        )  # fmt: skip
        equal = Measure(
            "equal_samples", "<= 0.5", "prompts whose samples are all equal", "there is nothing to choose between",
            "raise the temperature, and see that the server respects it", _all_equal,
        )  # fmt: skip
        found = [
            *answers.common("answers", "response", _answers),
            answers.truncated("answers", "truncated"),
            echoes,
            answers.other_language("answers", _answers),
        ]
        return [*found, equal] if len(self._samplings) > 1 else found

    async def _drawn(self, prompt: list[Message], llm: RowLLM, sample: int, sampling: Sampling) -> Drawn:
        async def ask(sampling: Sampling, further: int) -> Completion:
            return await self._answer(prompt, llm, sample + further, sampling)

        def finished(answer: Completion) -> Row:
            text = self.params.prefill + answer.text
            return {"prompt": prompt, "response": text, "truncated": answer.finish == "length"}

        return await accepting.draw(self.params, self._checks, ask, sampling, finished)

    @property
    def _system(self) -> str:
        return with_principles(self.params.system, self.context.constitution)

    @cached_property
    def _checks(self) -> list[Measure]:
        return accepting.checks(self.params.accept, self.measures())

    async def _answer(self, prompt: Sequence[Message], llm: RowLLM, sample: int, sampling: Sampling) -> Completion:
        p = self.params
        asked = with_examples(with_system(prompt, self._system), self._examples)
        if p.mode == "chat":
            return await llm.chat(asked, sampling, sample=sample, prefill=p.prefill, template=p.template)
        answer = await llm.complete(plain_text(asked, p.mode) + p.prefill, sampling, sample=sample)
        text = answer.text if p.prefill else answer.text.strip()
        return answer._replace(text=text)

    def _missing_examples(self) -> Iterator[Finding]:
        known, wanted = self.context.constitution, self.params.few_shot
        have = len(known.few_shot_critique) if known else 0
        if isinstance(wanted, int) and wanted > have:
            told = (
                f"constitution {known.name} has {have} examples, got {wanted}" if known else "no constitution has the examples"
            )
            hint = f"ask for at most {have}" if have else "list them: [{prompt: ..., response: ...}]"
            yield Finding(("few_shot",), told, hint)

    @cached_property
    def _examples(self) -> Sequence[Example | CritiqueExample]:
        wanted = self.params.few_shot
        if isinstance(wanted, int):
            return self.constitution.few_shot_critique[:wanted] if wanted else ()
        return wanted

    @cached_property
    def _samplings(self) -> list[Sampling]:
        p = self.params
        given = [SamplingParams()] * p.samples if isinstance(p.samples, int) else p.samples
        merged = [{**dict(p.sampling), **{name: getattr(s, name) for name in s.model_fields_set}} for s in given]
        stop = ("\n\nHuman:",) if p.mode == "transcript" else ()
        return [Sampling(**{**fields, "stop": fields["stop"] or stop}) for fields in merged]


def _thought(answer: Completion) -> Row:
    return {"thought": answer.thought} if answer.thought else {}


def _answers(row: Row) -> Sequence[str]:
    """Return all answers of a finished row."""
    return row.get("responses") or [row["response"]]


def _all_equal(passed: Passed) -> float | None:
    found = [text for row in passed.made for text in _answers(row)]
    return float(all(texts.same(text, found[0]) for text in found[1:])) if len(found) > 1 else None


def with_examples(prompt: Sequence[Message], examples: Sequence[Example | CritiqueExample]) -> list[Message]:
    """Return a prompt with examples as turns before it, behind its system turn."""
    first = next((place for place, turn in enumerate(prompt) if turn["role"] != "system"), len(prompt))
    shown = [turn for example in examples for turn in (*turns(example.prompt), assistant(example.response))]
    return [*prompt[:first], *shown, *prompt[first:]]


def plain_text(messages: Sequence[Message], mode: Literal["transcript", "raw"]) -> str:
    """Return a prompt as the plain text a model without chat template continues."""
    if mode == "raw":
        return "\n\n".join(m["content"] for m in messages)
    return f"\n\n{conversation_text(messages)}\n\nAssistant:"


def _kept(prompt: list[Message], keep: str) -> list[Message]:
    if keep == "all":
        return prompt
    asked = [m for m in prompt if m["role"] == "user"]
    return [asked[0 if keep == "first" else -1]]
