"""The plan's count equals the run's, also when several processes count."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.flow import counting
from caiflow.engine.flow.counting import count_known
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.operator import RowParams, StepContext
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger
from support.marking import LOCK, Mark


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
        ledger.flush()
        found = count_known(steps, Rows(tmp_path / "rows"), lambda namespace: ledger)
    assert (found["mark"].total, found["mark"].cached, found["mark"].tokens) == (4000, 2000, 6000)
    assert (found["again"].total, found["again"].cached) == (4000, 0)
    assert (found["mark"].calls, found["again"].calls) == (2000, 4000)


def shared_out(folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many rows two processes or more count that must run."""
    monkeypatch.setattr(counting, "ROWS_PER_PROCESS", 1)  # as above
    monkeypatch.setattr(counting, "cores", lambda: 2)
    with RowsWriter(folder / "rows", {"uid": "text", "text": "text"}) as writer:
        writer.write_rows([{"uid": f"u{i}", "text": text} for i, text in enumerate(texts)])
    params = RowParams(input="rows")
    steps = [FlowStep("mark", Mark(params, StepContext()), "rows", "id", "mark-none", params=params)]
    with Ledger(folder / "ledger", "mark-none") as ledger:
        return count_known(steps, Rows(folder / "rows"), lambda namespace: ledger)["mark"].calls


def test_a_lock_held_in_this_process_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LOCK:
        assert shared_out(tmp_path, ["a", "b", "c"], monkeypatch) == 3


def test_what_a_process_refuses_is_said_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepError, match=r"^mark: row u1: identity: set has no form"):
        shared_out(tmp_path, ["a", "unstable"], monkeypatch)
