"""Answers that are drawn again until checks accept them: what `accept` and `tries` mean.

Owns those fields, the further draws, and what becomes of an answer whose last draw fails too. Which checks there are is the
operators' affair: they are the health measures that can be read off one row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from caiflow.engine.errors import Finding, suggest
from caiflow.engine.health import Bound, Measure, Passed
from caiflow.engine.llm.base import Completion, Sampling
from caiflow.engine.operator import ModelRowParams, RowDropped
from caiflow.engine.rows.columns import ColumnType, Row

FURTHER = 1 << 16
"""Between the sample numbers of an answer's draws, so that each has a seed of its own."""
COLUMNS = ("draws", "unaccepted")
ABOUT_AN_ANSWER = frozenset(
    {"messages", "tool_use", "responses", "sample", "truncated", "thought", *COLUMNS}
    | {"principle", "principles", "critique", "critiques", "few_shot", "revision", "revisions", "round"}
    | {"critique_truncated", "revision_truncated"}
    | {"chosen", "rejected", "p_chosen", "margin", "chosen_index", "rejected_index"}
)
"""Columns that speak of an answer: a whole conversation, the other samples, what critique and revise wrote, a preference."""


class AcceptParams(ModelRowParams):
    """Fields of a row operator whose answers may be drawn again."""

    accept: tuple[str, ...] = ()
    """Health measures of the step that an answer must not be flawed by, such as `circles`; one that is gets drawn again."""
    tries: int = Field(default=3, ge=1, le=16)
    """Draws of an answer at the most, where `accept` names checks; each has a seed of its own and is kept in the ledger."""
    retry_temperature: float | None = Field(default=None, gt=0, le=10)
    """Temperature of all draws but the first; by default that of `sampling`, which has to be above 0."""
    on_reject: Literal["drop", "keep"] = "drop"
    """A row whose last draw fails is left out, the check being the reason, or kept, with the check in `unaccepted`."""

    @property
    def most_draws(self) -> int:
        """Draws of an answer at the most."""
        return self.tries if self.accept else 1


class Drawn(NamedTuple):
    """An answer, the draws it took, and the check that it fails; empty where it is accepted."""

    answer: Completion
    draws: int = 1
    failed: str = ""


def checks(names: Iterable[str], measures: Iterable[Measure]) -> list[Measure]:
    """Return the measures of those names, in their order."""
    by_name = {measure.name: measure for measure in measures if measure.row is not None}
    return [by_name[name] for name in names]


Ask = Callable[[Sampling, int], Awaitable[Completion]]
"""Draws an answer; the number is to be added to the sample's."""


async def draw(
    params: AcceptParams, measures: Sequence[Measure], ask: Ask, sampling: Sampling, row: Callable[[Completion], Row]
) -> Drawn:
    """Ask until none of the measures finds fault or no try is left; `row` makes the finished row of an answer."""
    for number in range(params.most_draws):
        if number and params.retry_temperature is not None:
            sampling = sampling._replace(temperature=params.retry_temperature)
        answer = await ask(sampling, number * FURTHER)
        failed = first_failed(measures, Passed([row(answer)])) if measures else ""
        if not failed:
            return Drawn(answer, number + 1)
    return Drawn(answer, params.most_draws, failed)


def first_failed(measures: Iterable[Measure], passed: Passed) -> str:
    """Return the first of the measures by which a row is flawed; empty where there is none."""
    for measure in measures:
        value = measure.row(passed) if measure.row else None
        if value is not None and not Bound.parse(measure.healthy).holds(value):
            return measure.name
    return ""


def writes(params: AcceptParams) -> Mapping[str, ColumnType]:
    """Return the columns that tell what the draws came to; none without `accept`."""
    kept: dict[str, ColumnType] = {"unaccepted": "text"} if params.on_reject == "keep" else {}
    return {"draws": "integer", **kept} if params.accept else {}


def columns(params: AcceptParams, drawn: Sequence[Drawn]) -> Row:
    """Return these columns for the answers of a row.

    Raises:
        RowDropped: the last draw of one fails too, and such rows are left out.
    """
    failed = next((d.failed for d in drawn if d.failed), None)
    if failed and params.on_reject == "drop":
        raise RowDropped(f"not accepted: {failed}")
    if not params.accept:
        return {}
    kept = {"unaccepted": failed} if params.on_reject == "keep" else {}
    return {"draws": sum(d.draws for d in drawn), **kept}


class Count:
    """Counts the draws behind rows as they pass; `answers` is how many a row takes at the least."""

    def __init__(self, answers: int = 1) -> None:
        self._answers, self._draws, self._redrawn, self._rows = answers, 0, 0, 0

    def see(self, row: Row) -> None:
        """Count one row's."""
        if "draws" in row:
            self._draws += row["draws"]
            self._redrawn += row["draws"] > self._answers
            self._rows += 1

    def join(self, later: Count) -> None:
        """Take in what others counted."""
        self._draws, self._redrawn, self._rows = (
            self._draws + later._draws, self._redrawn + later._redrawn, self._rows + later._rows,
        )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Return all draws, and the share of rows that took more than they must; nothing without `accept`."""
        return {"draws": self._draws, "redrawn": self._redrawn / self._rows} if self._rows else {}


def problems(params: AcceptParams, measures: Iterable[Measure], samplings: Iterable[Sampling]) -> Iterator[Finding]:
    """Yield checks that don't exist, and further draws that would be the same again."""
    known = [measure.name for measure in measures if measure.row is not None]
    for place, name in enumerate(params.accept):
        if name not in known:
            yield Finding(("accept", place), f"there is no check `{name}` of one answer", suggest(name, known, "checks"))
    again = params.accept and params.tries > 1 and params.retry_temperature is None
    if again and any(sampling.temperature == 0 for sampling in samplings):
        yield Finding(("tries",), "a greedy draw gives the same answer again", "set `retry_temperature`, or `tries: 1`")
