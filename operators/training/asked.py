"""Rewards that ask models, in the form that the trainers' library calls: each question is put as soon as its replies are drawn.

Owns who is asked what is asked already. What is asked, and what the answers are worth, is in `grades` and `contests`. A reward
lives in the event loop that the library calls it in.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from caiflow.engine.llm.base import Message
from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row

UNREAD = "unread/"
"""Begins the name of the share of a judge's or grader's answers that couldn't be read."""
EARLY = "early/"
"""Begins the name of the share of a reward's questions that were put while its batch was still being drawn."""
FEWEST = 3
"""With as many questions and no answer that can be read, the question is wrong, not the replies."""
LogMetric = Callable[[str, float], None]
Reader = Callable[[Sequence[Message], Sequence[int]], str]
"""From a prompt and the ids of a reply to its words."""


class Drawn(NamedTuple):
    """A batch's prompts, the columns that their rows have beside, and the replies so far, by place."""

    prompts: Sequence[Sequence[Message]]
    more: Sequence[Mapping[str, Any]]
    replies: dict[int, str]

    def turns(self, place: int) -> list[Message]:
        """Return a prompt's turns."""
        return [{"role": turn["role"], "content": turn["content"]} for turn in self.prompts[place]]


class AskedReward(ABC):
    """A reward for which a model is asked."""

    def __init__(self, name: str, model: str, llms: LLMs, read: Reader) -> None:
        self.__name__ = name
        self._model = model
        self._llms = llms
        self.read = read
        self._begun: dict[str, tuple[asyncio.Task[list[Row]], int]] = {}

    @abstractmethod
    def questions(self, drawn: Drawn, new: int | None = None) -> Iterable[Row]:
        """Yield a row for each question about the replies that are drawn; with `new` those alone that this one completes."""

    @abstractmethod
    async def ask(self, row: Row, llm: RowLLM) -> Row:
        """Return a question's answer."""

    @abstractmethod
    def worth(self, drawn: Drawn, answer: Callable[[Row], Row], log_metric: LogMetric) -> list[float]:
        """Return the reward of each reply, all being drawn; `answer` has that of each question."""

    def begin(self, rows: Iterable[Row]) -> None:
        """Put questions that aren't put yet, without waiting for answers."""
        new = {key: row for row in rows if (key := repr(row)) not in self._begun}
        if new:
            task = asyncio.create_task(self._llms.map("reward", self._model, list(new.values()), self.ask))
            self._begun |= {key: (task, place) for place, key in enumerate(new)}

    async def __call__(
        self, prompts: Any, completion_ids: Any, log_metric: LogMetric, more: Any = None, **_: Any
    ) -> list[float]:
        """Return the rewards of replies given as token ids, to five digits; the library awaits several of these at once.

        What shared a batch of the engine shows in the last bits of a probability, and what does is a matter of timing.
        """
        drawn = Drawn(prompts, more or [{}] * len(prompts), dict(enumerate(map(self.read, prompts, completion_ids))))
        early = len(self._begun)
        self.begin(self.questions(drawn))
        log_metric(f"{EARLY}{self.__name__}", early / max(1, len(self._begun)))
        begun, self._begun = self._begun, {}
        for task in {task: None for task, _ in begun.values()}:
            await task

        def answer(row: Row) -> Row:
            task, place = begun[repr(row)]
            return task.result()[place]

        return [round(value, 5) for value in self.worth(drawn, answer, log_metric)]


class Listener:
    """Hears a batch's tokens as they are drawn, as a streamer of transformers, and tells which replies have ended.

    `ends` are the tokens that end a reply; one that is cut off is never told.
    """

    def __init__(self, ends: Collection[int], tell: Callable[[Mapping[int, Sequence[int]]], None]) -> None:
        self._ends = frozenset(ends)
        self._tell = tell
        self._open: dict[int, list[int]] | None = None

    def put(self, tokens: Any) -> None:
        """Take the prompts [B, T] first, then the next token of each reply [B]."""
        if self._open is None:
            self._open = {place: [] for place in range(len(tokens))}
            return
        drawn = tokens.tolist()
        for place, ids in self._open.items():
            ids.append(drawn[place])
        if ended := {place: ids for place, ids in self._open.items() if ids[-1] in self._ends}:
            self._open = {place: ids for place, ids in self._open.items() if place not in ended}
            self._tell(ended)

    def end(self) -> None:
        """Be told that all are drawn."""
