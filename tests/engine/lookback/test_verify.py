"""Hashing again what runs made."""

from pathlib import Path

import pytest

from caiflow.engine.errors import CaiflowError
from caiflow.engine.lookback.verify import verify
from caiflow.engine.plan.lock import LOCK
from caiflow.engine.store.artifacts import META, Store
from tests.support.table_runs import run_tables, write_spec


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    run_tables(write_spec(tmp_path / "here"), tmp_path / "run", Store())
    return tmp_path / "run"


def problems(run_dir: Path) -> dict[str, str]:
    return {verdict.step: "; ".join(verdict.problems) for verdict in verify(run_dir) if verdict.problems}


def test_an_untouched_run_is_whole(run_dir: Path) -> None:
    assert [(verdict.step, verdict.files > 0, verdict.problems) for verdict in verify(run_dir)] == [
        ("red", True, ()),
        ("clean", True, ()),
    ]


def test_each_change_is_named(run_dir: Path) -> None:
    part = run_dir / "steps" / "clean" / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    assert problems(run_dir) == {"clean": "part-00000.parquet is changed"}
    part.unlink()
    (run_dir / "steps" / "clean" / "more.txt").write_text("")
    assert problems(run_dir) == {"clean": "more.txt is new; part-00000.parquet is missing"}
    (run_dir / "steps" / "red" / META).unlink()
    assert "not a whole artifact" in problems(run_dir)["red"]


def test_an_artifact_of_another_step_does_not_pass(run_dir: Path) -> None:
    (run_dir / "steps" / "clean").unlink()
    (run_dir / "steps" / "clean").symlink_to((run_dir / "steps" / "red").resolve())
    assert "another artifact's" in problems(run_dir)["clean"]
    assert "isn't the lock's" in problems(run_dir)["clean"]


def test_a_run_without_lock_is_checked_all_the_same(run_dir: Path) -> None:
    (run_dir / LOCK).unlink()
    assert problems(run_dir) == {}


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(CaiflowError, match="no run"):
        list(verify(tmp_path))
