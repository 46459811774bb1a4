"""What a rerun made otherwise than the run whose lock it had, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.lookback.sameness import told
from caiflow.engine.plan.lock import LOCK
from caiflow.engine.store.artifacts import Store
from support.made_runs import made_run, plain_rows


def run_of(place: Path, name: str, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave a run with its lock."""
    monkeypatch.setenv("CAIFLOW_HOME", str(place / "home"))
    run_dir = made_run(place / "home", place / name, rows)
    record = json.loads((run_dir / "run.json").read_text())
    store = Store(place / "home")
    steps = {
        step: {"op": made["op"], "digest": made["digest"], "content": store.artifact(made["digest"]).content}  # type: ignore[union-attr]
        for step, made in record["steps"].items()
    }
    (run_dir / LOCK).write_text(json.dumps({"caiflow_lock": 1, "steps": steps}))
    return run_dir


def test_rows_that_differ_are_counted_by_column_and_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = plain_rows(12)
    changed = [{**row, "critique": "The answer is too short."} if i < 5 else row for i, row in enumerate(rows)]
    first, again = (run_of(tmp_path, name, made, monkeypatch) for name, made in (("first", rows), ("again", changed)))
    lines = dict(line.split(": ", 1) for line in told(first, again))
    assert lines["critiques"] == "critique differs in 5 of 12 rows"
    assert "red" not in lines
    assert "answers" not in lines
    assert "judged" not in lines


def test_texts_that_are_equal_are_said_to_be_with_the_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    first, again = (run_of(tmp_path, name, plain_rows(12), monkeypatch) for name in ("first", "again"))
    beside = tmp_path / "export"
    (beside / "steps" / "judged").mkdir(parents=True)
    table = pl.read_parquet(first / "steps" / "judged" / "*.parquet")
    other = table.with_columns(p_chosen=pl.col("p_chosen") + 1e-6)
    other.write_parquet(beside / "steps" / "judged" / "part-00000.parquet")
    lock = json.loads((first / LOCK).read_text())
    lock["steps"]["judged"]["content"] = "another"
    (beside / LOCK).write_text(json.dumps(lock))
    (line,) = told(beside, again)
    assert line == "judged: texts equal, 0 of 8 verdicts flipped, p_chosen differs in 8 of 8 rows"


def test_what_isnt_beside_the_lock_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = (run_of(tmp_path, name, plain_rows(12), monkeypatch) for name in ("first", "again"))
    alone = tmp_path / "alone"
    alone.mkdir()
    lock = json.loads((first / LOCK).read_text())
    lock["steps"]["tuned"]["content"] = "another"
    (alone / LOCK).write_text(json.dumps(lock))
    (line,) = told(alone, again)
    assert "isn't beside the lock" in line
