"""The plan's count equals the run's, also when several processes count."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.flow import counting
from caiflow.engine.flow.counting import count_known
from caiflow.engine.flow.stream import FlowStep
from caiflow.engine.operator import RowLLM, RowOperator, RowParams, StepContext
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger


class Mark(RowOperator[RowParams]):
    """Writes a mark without asking any model."""

    name = "mark"
    params_type = RowParams

    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def writes(self) -> dict[str, ColumnType]:
        return {"mark": "text"}

    async def row(self, row: Row, llm: RowLLM) -> Row:
        return {"mark": row["text"]}


@pytest.mark.parametrize("rows_per_process", [10**9, 1000])
def test_half_known_rows_count_as_half(tmp_path: Path, rows_per_process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # the size from which processes pay is a tuning constant: lowered here so that a small table is shared out
    monkeypatch.setattr(counting, "ROWS_PER_PROCESS", rows_per_process)
    with RowsWriter(tmp_path / "rows", {"uid": "text", "text": "text"}) as writer:
        writer.write_rows([{"uid": f"u{i}", "text": f"t{i}"} for i in range(4000)])
    params = RowParams(input="rows")
    steps = [FlowStep("mark", Mark(params, StepContext()), "rows", "id", "mark-none", params=params)]
    steps.append(FlowStep("again", Mark(params, StepContext()), "mark", "id2", "mark-none", params=params))
    with Ledger(tmp_path / "ledger", "mark-none") as ledger:
        for i in range(0, 4000, 2):
            view = {"uid": f"u{i}", "text": f"t{i}"}
            ledger.append(steps[0].row_key(view), {"out": [{"mark": "m"}], "tokens": 3})
        found = count_known(steps, Rows(tmp_path / "rows"), lambda namespace: ledger)
    assert (found["mark"].total, found["mark"].cached, found["mark"].tokens) == (4000, 2000, 6000)
    assert (found["again"].total, found["again"].cached) == (4000, 0)
    assert (found["mark"].calls, found["again"].calls) == (2000, 4000)
