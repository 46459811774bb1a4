"""Graders as rewards: each reply's grade by a model that is asked about it, in the form that the trainers' library calls.

Owns what a reply is to a grader, and what counts for one whose grade can't be read. How a model is asked is in `grading`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Message
from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.operators.grading.graders import grade
from caiflow.operators.grading.params import ModelGrading

UNREAD = "unread/"
"""Begins the name of the share of a grader's grades that couldn't be read."""
FEWEST = 3
"""With as many replies and no grade that can be read, the question is wrong, not the replies."""


def graded(
    name: str, how: ModelGrading, llms: LLMs, read: Callable[[Sequence[Message], Sequence[int]], str]
) -> Callable[..., Awaitable[list[float]]]:
    """Return the grades of replies given as token ids; the library awaits several of these at once.

    A reply whose grade can't be read gets the mean of the others to its prompt, so that it is no better or worse than those;
    where there are none, the mean of all.
    """

    async def ask(row: Row, llm: RowLLM) -> Row:
        try:
            return (await grade(how, row, row["response"], llm))._asdict()
        except EngineError as error:
            if error.kind != "overflow":
                raise
            return {"value": None, "said": str(error)}

    async def score(prompts: Any, completion_ids: Any, log_metric: Any, more: Any = None, **_: Any) -> list[float]:
        replies = list(map(read, prompts, completion_ids))
        rows = list(map(_row, prompts, replies, more or [{}] * len(replies)))
        found = await llms.map("reward", how.model, rows, ask)
        values = [one["value"] for one in found]
        unread = values.count(None)
        log_metric(f"{UNREAD}{name}", unread / len(values))
        if unread == len(values) >= FEWEST:
            raise StepError(
                f"rewards.{name}: none of {len(found)} grades can be read, the model answered {found[0]['said'][:200]!r}",
                "say in `question` how to reply, or take `method: logprobs`",
            )
        return _filled(values, [repr(row["prompt"]) for row in rows], sum(how.span) / 2)

    score.__name__ = name
    return score


def _filled(values: Sequence[float | None], prompts: Sequence[str], middle: float) -> list[float]:
    """Return grades with each missing one put in: the mean to its prompt, else the mean of all, else the scale's middle."""
    known: dict[str, list[float]] = {"": [value for value in values if value is not None] or [middle]}
    for value, prompt in zip(values, prompts, strict=True):
        if value is not None:
            known.setdefault(prompt, []).append(value)
    means = {prompt: sum(given) / len(given) for prompt, given in known.items()}
    pairs = zip(values, prompts, strict=True)
    return [means.get(prompt, means[""]) if value is None else value for value, prompt in pairs]


def _row(prompt: Sequence[Message], reply: str, more: Mapping[str, Any]) -> Row:
    """Return the row of a reply; its uid is what it says, so that equal ones are one call wherever they are drawn."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    return {**more, "uid": digest([turns, reply])[:32], "prompt": turns, "response": reply}
