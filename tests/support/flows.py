"""A small operator that asks, and the sources and steps for streaming rows through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.operator import ModelRowParams, RowDropped, RowLLM, RowOperator, StepContext
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.engine.rows.folder import Rows, RowsWriter


class Ask(RowOperator[ModelRowParams]):
    """Asks once about one column and writes another."""

    name = "ask"
    params_type = ModelRowParams

    def __init__(self, params: ModelRowParams, column: str = "question", target: str = "answer", times: int = 1) -> None:
        super().__init__(params, StepContext())
        self.column, self.target, self.times = column, target, times

    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def writes(self) -> dict[str, ColumnType]:
        return {self.target: "text"}

    def calls(self) -> int:
        return self.times

    async def row(self, row: Row, llm: RowLLM) -> Row:
        if row[self.column] == "leave me out":
            raise RowDropped("asked to")
        text = row[self.column]
        for i in range(self.times):
            text = (await llm.chat([{"role": "user", "content": text}], sample=i)).text
        return {self.target: text}


def step(name: str, operator: RowOperator[Any], source: str, identity: str = "") -> FlowStep:
    return FlowStep(name, operator, source, identity or f"id-{name}", f"{name}-m", "m", "m@1", 7, operator.params)


def params(**fields: Any) -> ModelRowParams:
    return ModelRowParams(input="source", model="m", **fields)


def write_source(folder: Path, questions: list[str]) -> Rows:
    with RowsWriter(folder, {"uid": "text", "question": "text"}) as writer:
        writer.write_rows([{"uid": f"u{i}", "question": question} for i, question in enumerate(questions)])
    return Rows(folder)
