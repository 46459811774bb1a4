"""The chain as caiflow's own row steps, each answer's length read from a column of the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.chain import CALLS, Message, Work, first_turn, next_turn
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.llm.base import Sampling
from caiflow.engine.operator import ModelRowParams, RowLLM, RowOperator, StepContext
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.engine.rows.folder import Rows, RowsWriter


class TurnParams(ModelRowParams):
    """Fields of `turn`."""

    stage: int
    """0 for the answer, 1 for its critique, 2 for the revision."""


class Turn(RowOperator[TurnParams]):
    """Asks for one of a row's three answers."""

    name = "turn"
    params_type = TurnParams

    def reads(self) -> Sequence[str]:
        """Return the question, the answers so far, and the length."""
        stage = self.params.stage
        return ["question", *(f"answer{before}" for before in range(stage)), f"length{stage}"]

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the answer's column."""
        return {f"answer{self.params.stage}": "text"}

    async def row(self, row: Row, llm: RowLLM) -> Row:
        """Ask."""
        talk: list[Message] = first_turn(row["question"])
        for stage in range(self.params.stage):
            talk = next_turn(talk, row[f"answer{stage}"], stage + 1)
        length = row[f"length{self.params.stage}"]
        answer = await llm.chat(talk, Sampling(max_tokens=length))  # type: ignore[arg-type]  # Message is a TypedDict there
        return {f"answer{self.params.stage}": answer.text}


def flow_steps() -> list[FlowStep]:
    """Return the three steps, each reading the one before."""
    steps = []
    for stage in range(CALLS):
        source = f"turn{stage - 1}" if stage else "source"
        turn = Turn(TurnParams(input=source, model="m", stage=stage), StepContext(seed=1))
        steps.append(FlowStep(f"turn{stage}", turn, source, f"turn{stage}", "turn-m", "m", "m", 1, turn.params))
    return steps


def write_source(folder: Path, work: Work) -> Rows:
    """Write the prompts with the lengths of their answers."""
    types: dict[str, ColumnType] = {"uid": "text", "question": "text"}
    types |= {f"length{stage}": "integer" for stage in range(CALLS)}
    with RowsWriter(folder, types) as writer:
        for place, (prompt, lengths) in enumerate(zip(work.prompts, work.lengths, strict=True)):
            given = {f"length{stage}": length for stage, length in enumerate(lengths)}
            writer.write_rows([{"uid": f"u{place}", "question": prompt, **given}])
    return Rows(folder)
