"""Graders as rewards: each reply's grade by a model that is asked about it.

Owns what a reply is to a grader, and what counts for one whose grade can't be read. How a model is asked is in `grading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.identity import digest
from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.operators.grading.graders import grade
from caiflow.operators.grading.params import ModelGrading
from caiflow.operators.training.asked import FEWEST, UNREAD, AskedReward, Drawn, LogMetric, Reader


class Grades(AskedReward):
    """The grades of replies.

    A reply whose grade can't be read gets the mean of the others to its prompt, so that it is no better or worse than those;
    where there are none, the mean of all.
    """

    def __init__(self, name: str, how: ModelGrading, llms: LLMs, read: Reader) -> None:
        super().__init__(name, how.model, llms, read)
        self._how = how

    def questions(self, drawn: Drawn, new: int | None = None) -> Iterator[Row]:
        """Yield the row of each reply; its uid is what it says, so that equal ones are one call wherever they are drawn."""
        for place in drawn.replies if new is None else (new,):
            turns, reply = drawn.turns(place), drawn.replies[place]
            yield {**drawn.more[place], "uid": digest([turns, reply])[:32], "prompt": turns, "response": reply}

    async def ask(self, row: Row, llm: RowLLM) -> Row:
        """Return a reply's grade."""
        try:
            return (await grade(self._how, row, row["response"], llm))._asdict()
        except EngineError as error:
            if error.kind != "overflow":
                raise
            return {"value": None, "said": str(error)}

    def worth(self, drawn: Drawn, answer: Callable[[Row], Row], log_metric: LogMetric) -> list[float]:
        """Return the grades."""
        rows = list(self.questions(drawn))
        found = list(map(answer, rows))
        values = [one["value"] for one in found]
        unread = values.count(None)
        log_metric(f"{UNREAD}{self.__name__}", unread / len(values))
        if unread == len(values) >= FEWEST:
            said = f"none of {len(found)} grades can be read, the model answered {found[0]['said'][:200]!r}"
            raise StepError(f"rewards.{self.__name__}: {said}", "say in `question` how to reply, or take `method: logprobs`")
        return _filled(values, [repr(row["prompt"]) for row in rows], sum(self._how.span) / 2)


def _filled(values: Sequence[float | None], prompts: Sequence[str], middle: float) -> list[float]:
    """Return grades with each missing one put in: the mean to its prompt, else the mean of all, else the scale's middle."""
    known: dict[str, list[float]] = {"": [value for value in values if value is not None] or [middle]}
    for value, prompt in zip(values, prompts, strict=True):
        if value is not None:
            known.setdefault(prompt, []).append(value)
    means = {prompt: sum(given) / len(given) for prompt, given in known.items()}
    pairs = zip(values, prompts, strict=True)
    return [means.get(prompt, means[""]) if value is None else value for value, prompt in pairs]
