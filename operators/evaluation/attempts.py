"""What becomes of a question that no model answers: it is kept with its reason and left out of the figures.

Owns that one rule for all measures; how many may fail is the step's `max_failed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.operator import Ask, RowLLM
from caiflow.engine.rows.columns import Row


def attempted(ask: Ask, blank: Mapping[str, Any]) -> Ask:
    """Return `ask` with a column `failed`: null, or the reason why the engine gave no answer; the row is then `blank`."""

    async def attempt(row: Row, llm: RowLLM) -> Row:
        try:
            return {**await ask(row, llm), "failed": None}
        except EngineError as error:
            if error.kind == "load":  # there is no model to ask
                raise
            return {**blank, "failed": f"{error.kind}: {error}"}

    return attempt


def answered(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that didn't fail."""
    return [row for row in rows if not row["failed"]]


LEAVE_OUT = "raise `max_failed` to leave them out"


def refuse_failures(rows: Sequence[Row], what: str, allowed: int, hint: str = LEAVE_OUT) -> None:
    """Stop the step where more rows failed than are allowed.

    Raises:
        StepError: with the number and the first reason.
    """
    failed = [row for row in rows if row["failed"]]
    if len(failed) > allowed:
        raise StepError(
            f"evaluate: {len(failed)} {what} failed, the first for row {failed[0]['uid']} ({failed[0]['failed']})", hint
        )
