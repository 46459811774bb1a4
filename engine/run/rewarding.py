"""A row step's number as the reward of a reply, in the form that TRL's trainers call: prompts and completions in, numbers out.

Asks anew and keeps nothing. The engine is in this process, loaded at the first call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from caiflow.engine.errors import PlanError
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.row_llm import asked_apart
from caiflow.engine.identity import digest
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.operator import Operator, RowOperator
from caiflow.engine.rows.columns import Row


def graded_column(operator: Operator[Any]) -> str | None:
    """Return the column in which a row step puts its only number; None of another step."""
    kinds = operator.writes() if isinstance(operator, RowOperator) else {}
    numbers = [name for name, kind in kinds.items() if kind == "number"]
    return numbers[0] if len(kinds) == len(numbers) == 1 else None


class RowReward:
    """The step `step` of a spec as a reward function; None for a reply that it can't grade.

    Columns of the training's own rows that the step reads are handed to it.

    Raises:
        PlanError: the step gives no single number, or its model isn't trained yet.
    """

    def __init__(self, spec: Path, step: str) -> None:
        from caiflow.engine.plan.components import Resolver
        from caiflow.engine.spec.load import load_spec
        from caiflow.engine.store.artifacts import Store

        loaded = load_spec(spec)
        column = graded_column(loaded.operators[step])
        if column is None:
            raise PlanError(f"{step}: `{loaded.steps[step].op}` gives a row no single number", "take a step such as `grade`")
        resolver = Resolver(loaded, Store())
        self.__name__ = step
        self._column = column
        self._step: FlowStep = resolver.ready_step(loaded.steps[step])
        self._source = resolver.model(self._step.model or "")
        self._host: EngineHost | None = None

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return a number for each reply."""
        reads = {name: values for name, values in columns.items() if name in self._step.operator.reads()}
        pairs = enumerate(zip(prompts, completions, strict=True))
        return asyncio.run(self._graded([_row(*pair, {n: v[i] for n, v in reads.items()}) for i, pair in pairs]))

    def close(self) -> None:
        """End the engine; the next call begins another."""
        if self._host is not None:
            self._host.close()
            self._host = None

    async def _graded(self, rows: Sequence[Row]) -> list[float | None]:
        from caiflow.engine.llm.load import load_engine

        assert self._source is not None
        self._host = self._host or EngineHost(partial(load_engine, self._source))
        async with EngineClient([LocalLink(self._host)]) as client:
            return list(await asyncio.gather(*(self._grade(row, client) for row in rows)))

    async def _grade(self, row: Row, client: EngineClient) -> float | None:
        step = self._step
        made = await step.operator.row(step.view(row), asked_apart(step, {step.model or "": client}, row["uid"]))
        value: float | None = (made if isinstance(made, Mapping) else made[0])[self._column]
        return value


def _row(prompt: Any, completion: Any, more: Mapping[str, Any]) -> Row:
    """Return the row of a reply: conversations as TRL has them, or plain texts."""
    reply = completion if isinstance(completion, str) else completion[-1]["content"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return {**more, "uid": digest([turns, reply])[:20], "prompt": turns, "response": reply}
