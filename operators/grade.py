"""`grade`: asks a model about each answer and writes down its grade, for `filter` and whoever comes after.

Owns the columns; how a model is asked, and its reply read, is in `grading`. Leaves no row out: `filter` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from caiflow.engine.health import Measure, Passed
from caiflow.engine.operator import ANSWERS, SPEED, ColumnName, ModelRowParams, RowLLM, RowOperator
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.operators.grading.params import READING_VERSION, Grading, columns
from caiflow.operators.judging.prompts import FORMAT_VERSION
from caiflow.operators.measures.attribution import Graded


class GradeParams(ModelRowParams, Grading):
    """Fields of `grade`."""

    answer: ColumnName | None = None
    """The column of the answers; by default the first of revision, response, chosen that the row has."""
    before: ColumnName | None = Field(default=None, json_schema_extra=SPEED)  # in `identity` where there is one
    """An earlier answer, such as `response`, that is graded as well: `metrics` tells how far each principle moved the grade."""
    into: ColumnName = Field(default="grade", pattern=r"^[A-Za-z_]\w*$")
    """The column that the grades are written to; null where a reply can't be read."""


class Grade(RowOperator[GradeParams]):
    """Grade answers by a question or a classifier."""

    name = "grade"
    params_type = GradeParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of the conversation, its answer, and those that the question names."""
        given = [self.params.answer or "|".join(ANSWERS), *self._earlier, *columns(self.params)]
        return {self.params.input: ["prompt", *given]}

    def reads(self) -> Sequence[str]:
        """Return the columns of the conversation, its answer, and those that the question names."""
        given = [self.params.answer] if self.params.answer else ANSWERS
        return list(dict.fromkeys(["prompt", *given, *self._earlier, *columns(self.params)]))

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the grade, and that of the earlier answer."""
        return {self.params.into: "number", **{f"{self.params.into}_{name}": "number" for name in self._earlier}}

    def calls(self) -> int:
        """Return a call for each answer."""
        return 1 + len(self._earlier)

    def identity(self) -> Mapping[str, Any]:
        """Return the version of the texts that a conversation becomes and of the reading of replies, and the earlier answer."""
        reading = {"reading": READING_VERSION} if self.params.method == "text" else {}
        return {"format": FORMAT_VERSION, **({"before": self._earlier} if self._earlier else {}), **reading}

    def handed_on(self, tool: str, step: str, made: Path) -> Iterator[tuple[str, str | Path]]:
        """Yield the grade as a reward function, which asks the spec's model."""
        del made
        if tool == "reward":
            from caiflow.operators.handed_on.reward_functions import of_a_step

            yield f"{step}.py", of_a_step(step)

    async def row(self, row: Row, llm: RowLLM) -> Row:
        """Return the grade of one answer, and of the earlier one."""
        from caiflow.operators.grading.graders import grade

        given = [self.params.answer] if self.params.answer else ANSWERS
        answer = next((row[name] for name in given if row.get(name) is not None), "")
        found = {self.params.into: (await grade(self.params, row, answer, llm)).value}
        for name in self._earlier:
            found[f"{self.params.into}_{name}"] = (await grade(self.params, row, row[name] or "", llm)).value
        return found

    def metrics(self, rows: Iterable[Row], _dropped: Mapping[str, int]) -> Mapping[str, Any]:
        """Return how far each principle moved the grade, where there is an earlier answer and rows name their principle."""
        into, moved = self.params.into, Graded(self.params.span)
        for row in rows if self._earlier else ():
            grades = row[f"{into}_{self.params.before}"], row[into]
            if row.get("principle") and None not in grades:
                moved.see(row["principle"], *grades)
        return {"by_principle": told} if (told := moved.figures()) else {}

    @property
    def _earlier(self) -> list[str]:
        return [self.params.before] if self.params.before else []

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
