"""`judge`: asks a model which of several answers is better and makes preference pairs of its votes.

Owns the candidates and the calls that they take; what becomes of the votes is in `judging.preferences`. Never trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import Finding
from caiflow.engine.health import Measure
from caiflow.engine.operator import Expected, RowLLM, RowOperator
from caiflow.engine.rows.columns import Columns, ColumnType, Row
from caiflow.operators.judging.options import MOST_OPTIONS, OptionsJudge
from caiflow.operators.judging.params import JudgeParams
from caiflow.operators.judging.prompts import FORMAT_VERSION

if TYPE_CHECKING:
    from caiflow.operators.judging.preferences import Preferences

_A: Mapping[ColumnType, str] = {
    "text": "one text",
    "number": "a number",
    "numbers": "numbers",
    "integer": "a number",
    "flag": "true or false",
    "messages": "a conversation",
    "conversations": "conversations",
}

_TELLING = 3
"""Rows from which on a judge that couldn't be read at all has failed, and wasn't merely unlucky."""


class Judge(RowOperator[JudgeParams]):
    """Compare answers and label which is better."""

    name = "judge"
    params_type = JudgeParams
    uses_constitution = True
    chooses = True

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of the conversation and its candidates."""
        return {self.params.input: self.reads()}

    def reads(self) -> Sequence[str]:
        """Return the columns of the conversation, its candidates and its criteria."""
        return ["prompt", *self._candidate_columns, *([self.params.rubric] if self.params.rubric else [])]

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the preference pair, its label, and the evidence: what each vote gave to the options as shown."""
        evidence: dict[str, ColumnType] = {"logprob_a": "numbers", "logprob_b": "numbers"}
        return {
            "principle": "text",
            "principles": "texts",
            "outcome": "text",
            "rejected": "text",
            "chosen": "text",
            "p_chosen": "number",
            "margin": "number",
            "chosen_index": "integer",
            "rejected_index": "integer",
            "scores": "numbers",
            "p_a": "numbers",
            **({"votes": "json"} if self.params.listwise else evidence),
            "thoughts": "texts",
            "unparsable_votes": "integer",
        }

    def check(self) -> Iterator[Finding]:
        """Yield what the constitution lacks, and candidates that have no letter."""
        columns = len(self._candidate_columns)
        for place, column in enumerate(self._candidate_columns):
            if column in self._candidate_columns[:place]:
                yield Finding(("candidates", place), f"`{column}` is a candidate already", "name another column")
        if self.params.listwise and columns > MOST_OPTIONS:
            message = f"a list holds up to {MOST_OPTIONS} candidates, got {columns}"
            yield Finding(("candidates",), message, "leave `listwise` out to judge them in pairs")
        if self.context.constitution is not None:
            yield from self._judge.problems()

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield a column that isn't what it is taken for: one holds a list of answers, several an answer each."""
        yield from super().check_columns(inputs)
        types = inputs[self.params.input].types
        if isinstance(self.params.candidates, str):
            found = types.get(self.params.candidates)
            if found not in (None, "texts", "json"):
                hint = "name a column of lists (`generate` with `samples` makes one), or several columns in a list"
                yield Finding(("candidates",), f"`{self.params.candidates}` holds no list of answers, but {_A[found]}", hint)
            return
        for place, column in enumerate(self.params.candidates):
            if types.get(column) in ("texts", "messages", "conversations"):
                message = f"each of several candidates holds one answer, but `{column}` holds a list"
                yield Finding(("candidates", place), message, f"write `candidates: {column}`")

    def identity(self) -> Mapping[str, Any]:
        """Return the version of the message format, and which of equals counts; the texts drawn are in the rows' identities."""
        equals = self.params.coarse and self.params.pairs == "best_worst" and len(self._candidate_columns) != 2
        return {"format": FORMAT_VERSION, **({"equals": "drawn"} if equals else {})}

    def row_identity(self, row: Row) -> Any:
        """Return the texts of the row's principles and examples."""
        return self._judge.identity(row["uid"], self.params.row_rubric(row))

    def answers(self, made: Row) -> list[str]:
        """Return the votes that couldn't be read, and the thoughts."""
        return [""] * made["unparsable_votes"] + (made["thoughts"] or [])

    def calls(self) -> int:
        """Return the calls of all pairs; a column of answers is taken to hold two."""
        return self._calls_among(2)

    def _calls_among(self, answers: int) -> int:
        """Return the calls that a row takes where a column of answers holds so many."""
        count = len(self._candidate_columns) if len(self._candidate_columns) > 1 else answers
        return self._judge.calls(count) if self.params.listwise else self._judge.calls() * (count * (count - 1) // 2)

    def calls_expected(self, given: Expected) -> int:
        """Return the calls that rows with so many answers take."""
        return given.rows * self._calls_among(max(2, given.answers))

    def expects(self, inputs: Mapping[str, Expected]) -> Expected | None:
        """Return a pair for each row, or all pairs of its answers."""
        given = inputs.get(self.params.input)
        count = max(len(self._candidate_columns), given.answers if given else 0, 2)
        return given and Expected(given.rows * (count * (count - 1) // 2 if self.params.pairs == "all" else 1))

    def calls_for(self, row: Row, coming: Collection[str] = ()) -> int:
        """Return the calls that tell the row's answers apart; equal ones take none."""
        if not set(coming).isdisjoint(self._candidate_columns):
            return self.calls()
        counts, rubric = Counter(text for text in self._answers(row) if text.strip()), self.params.row_rubric(row)
        if self.params.listwise:
            return self._judge.calls(len(counts), rubric) if len(counts) > 1 else 0
        return self._judge.calls(rubric=rubric) * sum(one * other for one, other in combinations(counts.values(), 2))

    async def row(self, row: Row, llm: RowLLM) -> Row | list[Row]:
        """Return the preference pair of one row, or a row for each pair."""
        return await self._preferences.row(row, self._answers(row), llm)

    def metrics(self, rows: Iterable[Row], dropped: Mapping[str, int]) -> Mapping[str, Any]:
        """Return rates of ties and unreadable answers, the judge's bias for a position, and the entropy of its labels.

        `position_bias` is the mean probability given to the option shown first, less an equal share; of lists,
        `position_excess` has the same for each place. `order_flips` is the share of rows where the orders don't agree on the
        best. Rows dropped because every vote was for one position count in both, with the share such a vote has (1 for text
        votes, the clamp's end after thoughts); plain log-probabilities that cancel out within `tie_margin` count in
        `order_flips` alone.
        """
        return self._preferences.figures(rows, dropped)

    def failure(self, metrics: Mapping[str, Any], said: str) -> str:
        """Return that no pair's judgements could be read, with what the judge answered; one or two pairs don't tell yet."""
        if metrics.get("unparsable") != 1 or metrics["rows_in"] < _TELLING:
            return ""
        answered = f"; it answered, for one, {said!r}" if said else ""
        return f"no judgement could be read{answered}; take a stronger judge, or show it examples (`few_shot`)"

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with judgements."""
        from caiflow.operators.judging.health import measures

        return measures(swap=self.params.swap)

    @cached_property
    def _judge(self) -> OptionsJudge:
        return OptionsJudge(self.params, self.context.constitution, self.context.seed)

    @cached_property
    def _preferences(self) -> Preferences:
        from caiflow.operators.judging.preferences import Preferences

        return Preferences(self.params, self.context.constitution, self.context.seed)

    @property
    def _candidate_columns(self) -> tuple[str, ...]:
        given = self.params.candidates
        return (given,) if isinstance(given, str) else given

    def _answers(self, row: Row) -> list[str]:
        """Return all candidates in their order; absent ones are empty."""
        given = self.params.candidates
        texts = (row[given] or ()) if isinstance(given, str) else [row[name] for name in given]
        return [text or "" for text in texts]
