"""`grade`: asks a model about each answer and writes down its grade, for `filter` and whoever comes after.

Owns the columns; how a model is asked, and its reply read, is in `grading`. Leaves no row out: `filter` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from caiflow.engine.health import Measure, Passed
from caiflow.engine.operator import ANSWERS, ColumnName, ModelRowParams, RowLLM, RowOperator
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.operators.grading.params import Grading, columns
from caiflow.operators.judging.prompts import FORMAT_VERSION


class GradeParams(ModelRowParams, Grading):
    """Fields of `grade`."""

    answer: ColumnName | None = None
    """The column of the answers; by default the first of revision, response, chosen that the row has."""
    into: ColumnName = Field(default="grade", pattern=r"^[A-Za-z_]\w*$")
    """The column that the grades are written to; null where a reply can't be read."""


class Grade(RowOperator[GradeParams]):
    """Grade answers by a question or a classifier."""

    name = "grade"
    params_type = GradeParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of the conversation, its answer, and those that the question names."""
        return {self.params.input: ["prompt", self.params.answer or "|".join(ANSWERS), *columns(self.params)]}

    def reads(self) -> Sequence[str]:
        """Return the columns of the conversation, its answer, and those that the question names."""
        return ["prompt", *([self.params.answer] if self.params.answer else ANSWERS), *columns(self.params)]

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the grade."""
        return {self.params.into: "number"}

    def identity(self) -> Mapping[str, Any]:
        """Return the version of the texts that a conversation becomes."""
        return {"format": FORMAT_VERSION}

    def handed_on(self, tool: str, step: str, made: Path) -> Iterator[tuple[str, str | Path]]:
        """Yield the grade as a reward function, which asks the spec's model."""
        del made
        if tool == "reward":
            from caiflow.operators.handed_on.reward_functions import of_a_step

            yield f"{step}.py", of_a_step(step)

    async def row(self, row: Row, llm: RowLLM) -> Row:
        """Return the grade of one answer."""
        from caiflow.operators.grading.graders import grade

        given = [self.params.answer] if self.params.answer else ANSWERS
        answer = next((row[name] for name in given if row.get(name) is not None), "")
        return {self.params.into: (await grade(self.params, row, answer, llm)).value}

    def measures(self) -> Sequence[Measure]:
        """Return the share of grades that can't be read."""
        into = self.params.into
        return [
            Measure(
                "unparsable", "<= 0.05", "grades that can't be read", "rules on them decide nothing about those rows",
                "say in `question` how to reply, or take `method: logprobs`", lambda passed: _unread(passed, into),
            )
        ]  # fmt: skip


def _unread(passed: Passed, column: str) -> float | None:
    return float(passed.made[0][column] is None) if passed.made else None
