"""`critique`: asks a model to criticise its own answer under a principle drawn for the row.

Owns the draw and what is kept of it (principle, few-shot examples, round). Never rewrites an answer: `revise` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from caiflow.engine.constitution.few_shot import FewShot
from caiflow.engine.errors import Finding
from caiflow.engine.health import Measure
from caiflow.engine.llm.base import Completion, Sampling
from caiflow.engine.operator import RowLLM, RowOperator, SamplingParams
from caiflow.engine.rows.columns import Columns, ColumnType, Row
from caiflow.engine.rows.turns import refused_systems
from caiflow.operators.drawing import accepting
from caiflow.operators.drawing.accepting import AcceptParams
from caiflow.operators.judging import prompts
from caiflow.operators.judging.prompts import FORMAT_VERSION, critique_messages, critique_text, current_answer, revisions_so_far
from caiflow.operators.measures import answers

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import CritiqueExample, Principle
    from caiflow.engine.llm.tokenizer_files import ModelFiles


class CritiqueParams(AcceptParams):
    """Parameters of `critique`."""

    sampling: SamplingParams = SamplingParams()
    """How tokens are drawn."""
    few_shot: int = Field(default=0, ge=0)
    """Worked examples of the constitution shown before the row."""
    examples: Literal["first", "drawn"] = "first"
    """`first` shows the same examples to all rows (their prefix is computed once); `drawn` draws them anew for each row."""
    format: prompts.Format = "chat"
    """`chat` sends turns under the chat template; `transcript` one plain text with headings, for models not trained to chat."""


class Critique(RowOperator[CritiqueParams]):
    """Criticise answers under a principle of the constitution."""

    name = "critique"
    version = 2
    raised_for: ClassVar[Mapping[int, str]] = {2: "critiques cut at max_tokens are marked in `critique_truncated`"}
    params_type = CritiqueParams
    uses_constitution = True

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of the conversation and its answer."""
        return {self.params.input: ["prompt", "response|revision"]}

    def reads(self) -> Sequence[str]:
        """Return the columns of the conversation, its answer, and the rounds so far."""
        return ["prompt", "response", "revision", "revisions"]

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the critique, and what it was drawn from."""
        own: dict[str, ColumnType] = {
            "principle": "text",
            "critique": "text",
            "critique_truncated": "flag",
            "few_shot": "texts",
            "round": "integer",
        }
        return {**own, **accepting.writes(self.params)}

    def answers(self, made: Row) -> list[str]:
        """Return the critique: the other texts are drawn, not asked for."""
        return [made["critique"] or ""]

    def check_models(self, models: Mapping[str, ModelFiles], inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield system turns that the chat template refuses."""
        if self.params.format == "chat":
            yield from refused_systems(inputs, "prompt", self.params.model, models)

    def check(self) -> Iterator[Finding]:
        """Yield what the constitution lacks, and checks that there are none of for critiques."""
        yield from accepting.problems(self.params, self.measures(), [self.params.sampling.sampling()])
        given = self.context.constitution
        if given is None:
            return
        if not given.having("critique"):
            yield Finding(
                (), f"constitution {given.name} has no critique requests", "add `critique` or `rule` to its principles"
            )
        if self.params.few_shot > len(given.few_shot_critique):
            have = len(given.few_shot_critique)
            yield Finding(
                ("few_shot",),
                f"constitution {given.name} has {have} examples, got {self.params.few_shot}",
                f"ask for at most {have}",
            )

    def identity(self) -> Mapping[str, Any]:
        """Return the version of the message format; the texts drawn are in the rows' identities."""
        return {"format": FORMAT_VERSION}

    def row_identity(self, row: Row) -> Any:
        """Return the texts drawn for the row."""
        return [self._principle(row).critique_request, self._few_shot.ids(self.context.seed, row["uid"])]

    async def row(self, row: Row, llm: RowLLM) -> Row:
        """Return the critique of the row's present answer."""
        principle, done = self._principle(row), len(revisions_so_far(row))
        ids = self._few_shot.ids(self.context.seed, row["uid"])
        write = critique_text if self.params.format == "transcript" else critique_messages
        asked = write(row["prompt"], current_answer(row), principle, self._few_shot.named(ids))

        async def ask(sampling: Sampling, further: int) -> Completion:
            return await prompts.ask(llm, asked, sampling, done + further)

        def made(answer: Completion) -> Row:
            cut = answer.finish == "length"
            return {"principle": principle.id, "critique": answer.text.strip(), "critique_truncated": cut, "few_shot": ids}

        sampling = self.params.sampling.sampling()
        drawn = await accepting.draw(self.params, self._checks, ask, sampling, lambda answer: {**row, **made(answer)})
        return {**made(drawn.answer), "round": done + 1, **accepting.columns(self.params, [drawn])}

    def calls(self) -> int:
        """Return all draws of the critique."""
        return self.params.most_draws

    def metrics(self, rows: Iterable[Row], _dropped: Mapping[str, int]) -> Mapping[str, Any]:
        """Return how many rows drew each principle, and what `accept` came to."""
        counts: Counter[str] = Counter()
        draws = accepting.Count()
        for row in rows:
            counts[row["principle"]] += 1
            draws.see(row)
        return {"principles": dict(sorted(counts.items())), **draws.figures()}

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with critiques."""
        penalise = f"set `repetition_penalty: 1.15`, or show the model how it is done (`few_shot`, now {self.params.few_shot})"
        means = "they say nothing about the answer, and revisions that follow them won't help"
        examples = "show others (`examples: drawn`), or fewer"
        return [
            *answers.common("critiques", "critique", _critique, answers.FOLLOWED),
            answers.truncated("critiques", "critique_truncated", answers.FOLLOWED),
            answers.copies("answer", "critiques", _critique, lambda row: [current_answer(row)], means, penalise),
            answers.copies("example", "critiques", _critique, self._shown, means, examples),
            answers.copies("principle", "critiques", _critique, self._request, means, penalise),
        ]

    def _shown(self, row: Row) -> list[str]:
        """Return what the examples shown to a finished row say."""
        return [text for e in self._few_shot.named(row["few_shot"]) for text in (e.response, e.critique, e.revision)]

    def _request(self, row: Row) -> list[str]:
        return [self.constitution[row["principle"]].critique_request]

    @cached_property
    def _checks(self) -> list[Measure]:
        return accepting.checks(self.params.accept, self.measures())

    @cached_property
    def _few_shot(self) -> FewShot[CritiqueExample]:
        return FewShot(self.constitution.few_shot_critique, self.params.few_shot, self.params.examples)

    def _principle(self, row: Row) -> Principle:
        return self.constitution.draw(self.context.seed, row["uid"], len(revisions_so_far(row)), stage="critique")[0]


def _critique(row: Row) -> Sequence[str]:
    return [row["critique"]]
