"""`revise`: asks a model to rewrite its answer as its critique suggests, for one round or several.

Owns the rounds and their history. The first round uses the critique that a `critique` step wrote for the present answer; every
other round draws a principle of its own and asks for its own critique, in the same words that `critique` uses.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from caiflow.engine.constitution.few_shot import FewShot
from caiflow.engine.errors import Finding, WrongValue
from caiflow.engine.health import Measure
from caiflow.engine.llm.base import Completion, Sampling
from caiflow.engine.operator import Expected, RowLLM, RowOperator, SamplingParams
from caiflow.engine.rows.columns import Columns, ColumnType, Row
from caiflow.engine.rows.turns import refused_systems
from caiflow.operators.drawing import accepting
from caiflow.operators.drawing.accepting import AcceptParams, Drawn
from caiflow.operators.judging import prompts
from caiflow.operators.judging.prompts import (
    FORMAT_VERSION,
    critique_messages,
    critique_text,
    current_answer,
    revise_messages,
    revise_text,
    revisions_so_far,
)
from caiflow.operators.measures import answers, texts
from caiflow.operators.measures.attribution import Revised

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import CritiqueExample, Principle
    from caiflow.engine.llm.tokenizer_files import ModelFiles

_PREAMBLE = (
    r"(?i)^\s*(?:(?:sure|certainly|of course|okay|ok)\b[^\n:]{0,80}[:!.]\s*)?"
    r"(?:(?:here(?:'s| is| are)|this is|below is)\b[^\n:]{0,120}:\s*|(?:\*\*)?(?:revision|revised (?:response|answer|version)"
    r"|rewritten (?:response|answer)|assistant)\s*:(?:\*\*)?\s*)"
)


class ReviseParams(AcceptParams):
    """Parameters of `revise`."""

    sampling: SamplingParams = SamplingParams()
    """How tokens are drawn."""
    rounds: int = Field(default=1, ge=1, le=64)
    """Rounds of critique and revision; each draws a principle of its own and rewrites the revision of the round before."""
    critique: bool = True
    """Whether each revision follows a critique; false goes straight to the revision request."""
    few_shot: int | None = Field(default=None, ge=0)
    """Worked examples of the constitution shown before the row; null shows those that its critique was given."""
    examples: Literal["first", "drawn"] = "first"
    """Which examples, where `few_shot` is a number: the first ones for all rows, or some drawn for each row."""
    format: prompts.Format = "chat"
    """`chat` sends turns under the chat template; `transcript` one plain text with headings, for models not trained to chat."""
    strip_preamble: bool = False
    """Whether openings such as `Here is a revised answer:` are cut off the revision."""
    rows: Literal["last", "each"] = "last"
    """`last` keeps one row with the last revision; `each` makes a row of every round (training on revisions of all rounds)."""


class _Round(NamedTuple):
    principle: str
    critique: str | None
    critique_cut: bool | None
    revision: str
    drawn: Drawn


class Revise(RowOperator[ReviseParams]):
    """Rewrite answers under the constitution."""

    name = "revise"
    version = 2
    raised_for: ClassVar[Mapping[int, str]] = {2: "revisions cut at max_tokens are marked in `revision_truncated`"}
    params_type = ReviseParams
    uses_constitution = True

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of the conversation and its answer."""
        return {self.params.input: ["prompt", "response|revision"]}

    def reads(self) -> Sequence[str]:
        """Return the columns of the conversation, its answer, its critique, and the rounds so far."""
        history = ["revision", "revisions", "critiques", "principles"]
        return ["prompt", "response", "principle", "critique", "critique_truncated", "few_shot", "round", *history]

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the last round's texts and the history of all rounds."""
        return {
            "principle": "text",
            "critique": "text",
            "critique_truncated": "flag",
            "revision": "text",
            "revision_truncated": "flag",
            "round": "integer",
            "principles": "texts",
            "critiques": "texts",
            "revisions": "texts",
            **accepting.writes(self.params),
        }

    def check_models(self, models: Mapping[str, ModelFiles], inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield system turns that the chat template refuses."""
        if self.params.format == "chat":
            yield from refused_systems(inputs, "prompt", self.params.model, models)

    def check(self) -> Iterator[Finding]:
        """Yield what the constitution lacks, and checks that there are none of for revisions."""
        yield from accepting.problems(self.params, self.measures(), [self.params.sampling.sampling()])
        given = self.context.constitution
        if given is None:
            return
        if not given.having(*self._stages):
            wanted = " and ".join(f"`{stage}`" for stage in self._stages)
            yield Finding((), f"constitution {given.name} has no principle with {wanted}", "add these texts, or a `rule`")
        have, wanted_shots = len(given.few_shot_critique), self.params.few_shot or 0
        if wanted_shots > have:
            yield Finding(
                ("few_shot",), f"constitution {given.name} has {have} examples, got {wanted_shots}", f"ask for at most {have}"
            )

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield the principles under which a critique may have been made and no revision can be."""
        yield from super().check_columns(inputs)
        given = self.context.constitution
        criticised = self.params.critique and {"critique", "principle"} <= inputs[self.params.input].types.keys()
        lacking = [p.id for p in given.principles if p.critique and not p.revision] if given and criticised else []
        if lacking:
            message = f"the critiques may be drawn under {', '.join(lacking)}, which has no `revision` text"
            yield Finding((), message, "add it to the constitution, or give a `rule`")

    def identity(self) -> Mapping[str, Any]:
        """Return the version of the message format; the texts drawn are in the rows' identities."""
        return {"format": FORMAT_VERSION}

    def row_identity(self, row: Row) -> Any:
        """Return the texts of the principles of all rounds, and the names of the examples."""
        return self.row_identities([row])[0]

    def row_identities(self, rows: Sequence[Row]) -> Sequence[Any]:
        """Return the same of many rows."""
        drawn = zip(self._principles(rows), rows, strict=True)
        return [[[[p.critique, p.revision] for p in principles], self._example_ids(row)] for principles, row in drawn]

    def calls(self) -> int:
        """Return the calls of all rounds: each revision with all its draws, and the critiques."""
        return self.params.rounds * (self.params.most_draws + self.params.critique)

    def calls_for(self, row: Row, coming: Collection[str] = ()) -> int:
        """Return the calls of all rounds, less one where the first round's critique is there or will be."""
        given = self.params.critique and ("critique" in coming or self._has_critique(row))
        return self.calls() - given

    def expects(self, inputs: Mapping[str, Expected]) -> Expected | None:
        """Return a row for each input row, or for each of its rounds."""
        given = inputs.get(self.params.input)
        return given and Expected(given.rows * (self.params.rounds if self.params.rows == "each" else 1))

    async def row(self, row: Row, llm: RowLLM) -> Row | list[Row]:
        """Return the revision of the last round, or a row for each."""
        new: list[_Round] = []
        for principle in self._principles([row])[0]:
            new.append(await self._round(row, new, principle, llm))
        if self.params.rows == "each":
            return [{**_columns(row, new[: i + 1]), **accepting.columns(self.params, [r.drawn])} for i, r in enumerate(new)]
        return {**_columns(row, new), **accepting.columns(self.params, [r.drawn for r in new])}

    def gathering(self) -> Revisions:
        """Return what the metrics are made of."""
        return Revisions(1 if self.params.rows == "each" else self.params.rounds)

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with revisions."""
        means = "a model trained on them learns to say this in place of an answer"
        penalise = "set `repetition_penalty: 1.15`, and drop them with `copies` in `filter`"
        unchanged = Measure(
            "unchanged", "<= 0.5", "revisions that say what the answer before said", "the critiques had no effect",
            "look at the critiques, and drop these rows with `unchanged` in `filter`",
            answers.each(_revision, lambda text, row: texts.same(text, _before(row) or "")),
        )  # fmt: skip
        announced = Measure(
            "preamble", "<= 0.05", "revisions that announce themselves", "a model trained on them learns to say so as well",
            "set `strip_preamble: true`", answers.each(_revision, lambda text, _: texts.announces(text)),
        )  # fmt: skip
        return [
            *answers.common("revisions", "revision", _revision),
            answers.truncated("revisions", "revision_truncated"),
            answers.copies("critique", "revisions", _revision, lambda row: [row["critique"] or ""], means, penalise),
            answers.copies("example", "revisions", _revision, self._shown, means, "drop them with `few_shot_leak` in `filter`"),
            answers.copies("principle", "revisions", _revision, self._requests, means, penalise),
            unchanged,
            announced,
            answers.other_language("revisions", _revision),
        ]

    def _shown(self, row: Row) -> list[str]:
        """Return what the examples shown to a finished row say."""
        shown = map(self._few_shot.by_id.get, self._example_ids(row))
        return [text for e in shown if e is not None for text in (e.response, e.critique, e.revision)]

    def _requests(self, row: Row) -> list[str]:
        principle = self._named(row["principle"])
        return [text for text in (principle.critique, principle.revision) if text]

    async def _round(self, row: Row, before: Sequence[_Round], principle: Principle, llm: RowLLM) -> _Round:
        """Return the round after those before: its critique, where it has one of its own, and its revision."""
        sampling, number = self.params.sampling.sampling(), len(revisions_so_far(row)) + len(before)
        answer, shown = before[-1].revision if before else current_answer(row), self._few_shot.named(self._example_ids(row))
        critique, cut = (row["critique"], row["critique_truncated"]) if not before and self._has_critique(row) else (None, None)
        if self.params.critique and critique is None:
            write = critique_text if self.params.format == "transcript" else critique_messages
            given = write(row["prompt"], answer, principle, shown)
            asked_first = await prompts.ask(llm, given, sampling, 2 * number)
            critique, cut = asked_first.text.strip(), asked_first.finish == "length"
        rewrite = revise_text if self.params.format == "transcript" else revise_messages
        asked = rewrite(row["prompt"], answer, principle, critique, shown)

        async def ask(sampling: Sampling, further: int) -> Completion:
            return await prompts.ask(llm, asked, sampling, 2 * number + 1 + further)

        def made(answer: Completion) -> _Round:
            text = answer.text.strip()
            text = without_preamble(text) if self.params.strip_preamble else text
            return _Round(principle.id, critique, cut, text, Drawn(answer))

        drawn = await accepting.draw(
            self.params, self._checks, ask, sampling, lambda answer: {**row, **_columns(row, [*before, made(answer)])}
        )
        return made(drawn.answer)._replace(drawn=drawn)

    @cached_property
    def _checks(self) -> list[Measure]:
        return accepting.checks(self.params.accept, self.measures())

    def _principles(self, rows: Sequence[Row]) -> list[list[Principle]]:
        """Return the principle of each round of each row: the row's own first where its critique is used, else drawn."""
        stage: Literal["critique", "revision"] = "critique" if self.params.critique else "revision"
        done = [len(revisions_so_far(row)) for row in rows]
        asked = [(row["uid"], range(n, n + self.params.rounds)) for row, n in zip(rows, done, strict=True)]
        drawn = self.constitution.draw_all(self.context.seed, asked, stage)
        return [
            [self._named(row["principle"]), *others[1:]] if self._has_critique(row) else others
            for row, others in zip(rows, drawn, strict=True)
        ]

    def _has_critique(self, row: Row) -> bool:
        """Return whether the row's critique is about its present answer, not left over from an earlier round."""
        if not self.params.critique or row.get("critique") is None or row.get("principle") is None:
            return False
        return (row.get("round") or 1) == len(revisions_so_far(row)) + 1

    def _named(self, principle: str) -> Principle:
        try:
            return self.constitution[principle]
        except KeyError:
            raise WrongValue(
                f"revise: the row was critiqued under principle {principle!r}, which constitution {self.constitution.name} "
                "doesn't have",
                "give both steps the same constitution",
            ) from None

    def _example_ids(self, row: Row) -> list[str]:
        if self.params.few_shot is None:
            return list(row.get("few_shot") or [])
        return self._few_shot.ids(self.context.seed, row["uid"])

    @cached_property
    def _few_shot(self) -> FewShot[CritiqueExample]:
        return FewShot(self.constitution.few_shot_critique, self.params.few_shot or 0, self.params.examples)

    @property
    def _stages(self) -> tuple[Literal["critique", "revision"], ...]:
        return ("critique", "revision") if self.params.critique else ("revision",)


def _revision(row: Row) -> Sequence[str]:
    return [row["revision"]]


class Revisions:
    """Takes in finished rows; tells the share that the last round left alone, the mean length, what principles changed."""

    def __init__(self, rounds: int) -> None:
        self._draws, self._revised = accepting.Count(rounds), Revised()
        self._count = self._same = self._chars = 0
        self._principled = False

    def see(self, row: Row) -> None:
        """Take in one row."""
        last, before = row["revisions"][-1], _before(row)
        self._principled = bool(principle := row.get("principle"))
        if principle:
            self._revised.see(principle, before or "", last)
        self._count, self._same, self._chars = self._count + 1, self._same + (last == before), self._chars + len(last)
        self._draws.see(row)

    def join(self, later: Revisions) -> None:
        """Take in what was taken in of later rows."""
        self._count, self._same, self._chars = self._count + later._count, self._same + later._same, self._chars + later._chars
        self._principled = later._principled if later._count else self._principled
        self._draws.join(later._draws)
        self._revised.join(later._revised)

    def figures(self) -> Mapping[str, Any]:
        """Return the figures."""
        if not self._count:
            return {}
        told = {"by_principle": self._revised.figures()} if self._principled else {}
        means = {"unchanged": self._same / self._count, "mean_chars": self._chars / self._count}
        return {**means, **self._draws.figures(), **told}


def _before(row: Row) -> str | None:
    """Return the answer that the last round of a finished row rewrote."""
    revisions = row["revisions"]
    return revisions[-2] if len(revisions) > 1 else row.get("response")


def without_preamble(text: str) -> str:
    """Return a revision without an opening that only announces it; a text that is nothing else stays."""
    return re.sub(_PREAMBLE, "", text, count=1).strip() or text


def _columns(row: Row, new: Sequence[_Round]) -> Row:
    """Return the columns after the rounds in `new`; earlier rounds of the row come first in the history."""
    last = new[-1]
    revisions = [*revisions_so_far(row), *(r.revision for r in new)]
    return {
        "principle": last.principle,
        "critique": last.critique,
        "critique_truncated": last.critique_cut,
        "revision": last.revision,
        "revision_truncated": last.drawn.answer.finish == "length",
        "round": len(revisions),
        "principles": [*(row.get("principles") or []), *(r.principle for r in new)],
        "critiques": [*(row.get("critiques") or []), *(r.critique or "" for r in new)],
        "revisions": revisions,
    }
