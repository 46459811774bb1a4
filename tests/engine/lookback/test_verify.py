"""Hashing again what runs made."""

import os
import shutil
from pathlib import Path

import pytest

from caiflow.engine.errors import CaiflowError, DamagedError
from caiflow.engine.lookback.history import output_kind, step_dir
from caiflow.engine.lookback.verify import verify
from caiflow.engine.plan.lock import LOCK
from caiflow.engine.store.artifacts import META, Store
from caiflow.engine.store.disk import point
from caiflow.engine.store.journal import read_run
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


def test_what_verify_finds_changed_no_run_uses_again(run_dir: Path, tmp_path: Path) -> None:
    """As a failing disk does it: the bytes change, size and time stay."""
    part = (run_dir / "steps" / "clean" / "part-00000.parquet").resolve()
    before, data = part.stat(), bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))
    digest = read_run(run_dir)["steps"]["clean"]["digest"]
    assert Store().artifact(digest) is not None, "nothing tells it without hashing"
    assert problems(run_dir) == {"clean": "part-00000.parquet is changed"}
    with pytest.raises(DamagedError, match=r"part-00000.parquet has changed; run again, which makes it anew"):
        Store().artifact(digest)


def test_an_artifact_with_a_file_of_somebody_else_is_not_used_again(run_dir: Path) -> None:
    digest = read_run(run_dir)["steps"]["red"]["digest"]
    shutil.copy(run_dir / "steps" / "red" / "part-00000.parquet", run_dir / "steps" / "red" / "part-00001.parquet")
    assert problems(run_dir) == {"red": "part-00001.parquet is new"}
    with pytest.raises(DamagedError, match=r"part-00001.parquet isn't one of its files; run again, which makes it anew"):
        Store().artifact(digest)


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


def test_after_the_store_moved_artifacts_are_found_by_their_digests(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = (tmp_path / "home").rename(tmp_path / "elsewhere")
    assert all("not a whole artifact" in said or "can't" in said for said in problems(run_dir).values())
    assert set(problems(run_dir)) == {"red", "clean"}
    monkeypatch.setenv("CAIFLOW_HOME", str(moved))
    assert problems(run_dir) == {}
    assert read_run(run_dir)["steps"].keys() == {"red", "clean"}
    assert output_kind(step_dir(run_dir, "clean")) == "rows"


def test_a_project_that_moves_with_its_store_keeps_its_links(tmp_path: Path) -> None:
    project = tmp_path / "project"
    target = project / "store" / "artifact"
    target.mkdir(parents=True)
    (project / "run" / "steps").mkdir(parents=True)
    point(project / "run" / "steps" / "red", target)
    moved = project.rename(tmp_path / "moved")
    assert (moved / "run" / "steps" / "red").resolve() == moved / "store" / "artifact"


def test_a_link_out_of_a_home_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    target = tmp_path / ".cache" / "artifact"
    target.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    point(tmp_path / "run" / "red", target)
    assert (tmp_path / "run" / "red").readlink() == target
