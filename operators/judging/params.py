"""What a spec says of judge. Asks nothing; the votes are carried out by preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from caiflow.engine.operator import ColumnName, ModelRowParams
from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.options import Judging
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
    """With more than two candidates: one row of the best against the worst, or a row for each pair."""
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

    def row_rubric(self, row: Row) -> str:
        """Return the instruction that a row brings along; empty where it brings none."""
        return rubric_instruction(row[self.rubric]) if self.rubric else ""
