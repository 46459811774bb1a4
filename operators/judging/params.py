"""What a spec says of judge, and of a judge whose verdicts are rewards. Asks nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from caiflow.engine.errors import WrongValue
from caiflow.engine.operator import ColumnName, ModelRef, ModelRowParams
from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.options import Judging
from caiflow.operators.judging.prompts import LETTERS
from caiflow.operators.judging.rubric import rubric_instruction


class JudgeParams(ModelRowParams, Judging):
    """Parameters of `judge`."""

    trial: ClassVar[Mapping[str, Any]] = {"ties": "keep"}
    """Few rows may be nothing but ties, and a trial is to reach the steps behind them."""

    candidates: ColumnName | Annotated[tuple[ColumnName, ...], Field(min_length=2, max_length=26)] = "responses"
    """The column that holds a list of answers, or the columns that hold one each."""
    rubric: ColumnName | None = None
    """The column that holds a row's own criteria, to judge it by in place of a principle: a text, or a list of texts or of
    `{criterion, points}`. Rows without any are judged by the constitution."""
    listwise: bool = False
    """Ask about all candidates (three to nine) in one question, in every cyclic order, instead of about two at a time.

    A candidate's score is its mean share; of candidates with the same score a drawn one counts. `method: text` finds the best
    this way, but tells nothing about those that are never picked.
    """
    pairs: Literal["best_worst", "all"] = "best_worst"
    """With more than two candidates: one row of the best against the worst, or a row for each pair.

    Of candidates with the same score a drawn one counts by `method: text` and after a thought; by likelihood, where little but
    equal texts scores alike, the first.
    """
    labels: Literal["soft", "hard"] = "soft"
    """`soft` keeps the judge's probability as `p_chosen`; `hard` makes it 1.

    Of more than two candidates, `best_worst` shares it out by their scores: that of the best against that of the worst.
    """
    ties: Literal["drop", "keep"] = "drop"
    """What becomes of undecided pairs: left out, or kept with `p_chosen` 0.5 and the first candidate as `chosen`."""
    tie_margin: float = Field(default=0.0, ge=0, lt=0.5)
    """Probabilities at most this far from 0.5 are ties."""
    unparsable: Literal["drop", "tie"] = "drop"
    """A pair with an unreadable vote is left out, or that vote counts half for each side."""

    @property
    def coarse(self) -> bool:
        """Whether votes take few values: those that are read in what the judge writes, or come after a thought."""
        return self.method == "text" or self.chain_of_thought is not None

    def row_rubric(self, row: Row) -> str:
        """Return the instruction that a row brings along; empty where it brings none."""
        return rubric_instruction(row[self.rubric]) if self.rubric else ""


class GroupJudging(Judging):
    """A judge that compares the replies to one prompt with each other, or each with an answer of the row."""

    model: ModelRef
    """The model that judges."""
    instruction: str = ""
    """What the judge is asked; by default the judging texts of the constitution, drawn for each comparison."""
    opponents: int | None = Field(default=None, ge=1)
    """Other replies to the prompt that each reply meets; by default all."""
    against: ColumnName | None = None
    """The column of an answer that each reply meets in place of the others."""
    listwise: bool = False
    """Have all replies to a prompt ranked in words in one question, which is asked again with them in reverse."""

    @model_validator(mode="after")
    def _one_way(self) -> GroupJudging:
        given = {"opponents", "against", "method", "few_shot", "examples", "chain_of_thought"} & self.model_fields_set
        if self.listwise and given:
            raise ValueError(f"`listwise` has all replies ranked in words, without {', '.join(sorted(given))}")
        if self.against and self.opponents:
            raise WrongValue("a reply meets `opponents` or what it is `against`", "leave one of them out")
        return self

    @property
    def ordering(self) -> dict[str, str]:
        """What of the order of replies counts towards an identity: a list's was drawn from the first."""
        return {} if self.listwise else super().ordering

    @property
    def asks_for_principles(self) -> bool:
        """Whether it takes texts from the constitution."""
        return not self.instruction or self.few_shot > 0

    def sets(self, replies: int) -> int:
        """Return how many sets of options it is asked about for so many replies to a prompt."""
        if self.listwise:
            return 1
        return replies if self.against else replies * min(self.opponents or replies, replies - 1) // 2


def wrong_group(name: str, judge: GroupJudging, replies: int) -> None:
    """Refuse a judge that can't compare so many replies to a prompt.

    Raises:
        WrongValue: there is one reply alone, or more than a list has letters, or an odd number of meetings' ends.
    """
    if judge.against:
        return
    if replies < 2:
        told = f"`{name}` compares replies to one prompt, and there is one alone"
        raise WrongValue(told, "give `num_generations` of 2 or more, or a column that it judges `against`")
    if judge.listwise and replies > len(LETTERS):
        told = f"`{name}` ranks {len(LETTERS)} replies at the most, got {replies}"
        raise WrongValue(told, "leave `listwise` out to judge them in pairs")
    if replies * min(judge.opponents or replies, replies - 1) % 2:
        told = f"{replies} replies to a prompt can't meet {judge.opponents} others each, which is an odd number of ends"
        raise WrongValue(told, f"give `{name}` an even number of `opponents`")
