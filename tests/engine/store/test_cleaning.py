"""Cleaning the store: nothing that a kept run or a living process needs ever goes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caiflow.engine.errors import StoreError
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.cleaning import _size_and_time, collect, find_garbage
from caiflow.engine.store.ledger import Ledger
from caiflow.engine.store.share import MARK
from support.large_store import fill
from tests.support.table_runs import run_tables, write_spec


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs that share the artifact of their first step."""
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    spec = write_spec(tmp_path / "here")
    run_tables(spec, tmp_path / "one", Store())
    spec.write_text(spec.read_text().replace("max: 12", "max: 9"))
    run_tables(spec, tmp_path / "two", Store())
    return tmp_path


def kinds(store: Store) -> list[str]:
    return sorted(item.kind for item in find_garbage(store, grace_s=0))


def test_what_runs_reach_stays_and_the_rest_goes_with_its_size(place: Path) -> None:
    store = Store()
    assert find_garbage(store, grace_s=0) == []
    dropped = (place / "one" / "steps" / "clean").resolve()
    shutil.rmtree(place / "one")
    found = find_garbage(store, grace_s=0)
    assert {(item.kind, item.path) for item in found if item.kind == "artifact"} == {("artifact", dropped)}
    assert sorted(item.kind for item in found) == ["artifact", "run"]
    assert all(item.size_bytes > 0 for item in found)
    assert len(collect(store, found)) == 2
    assert not dropped.exists()
    assert find_garbage(store, grace_s=0) == []
    assert len(run_tables(place / "here" / "spec.yaml", place / "three", store).artifacts) == 2


def test_young_things_are_left_alone(place: Path) -> None:
    shutil.rmtree(place / "one")
    assert find_garbage(Store()) == []


def test_what_a_killed_run_left_for_other_nodes_to_find_goes(place: Path) -> None:
    store = Store()
    mark = store.home / f"{MARK}0123"
    mark.mkdir()
    (mark / "nonce").write_text("0123")
    assert find_garbage(store) == [], "a run may be asking just now"
    (garbage,) = collect(store, find_garbage(store, grace_s=0))
    assert (garbage.path, mark.exists()) == (mark, False)


def test_ledgers_go_unless_reached_or_in_use(place: Path) -> None:
    store = Store()
    for name in ("reached", "free"):
        with Ledger(store.ledger_dir, name) as ledger:
            ledger.append(bytes(16), {})
    store.record_run("short", place / "one", ledgers=["reached"])
    assert find_garbage(store, grace_s=0) == []
    (garbage,) = find_garbage(store, grace_s=0, paid=True)
    assert (garbage.kind, garbage.path.name) == ("ledger", "free")
    with Ledger(store.ledger_dir, "free") as ledger:
        ledger.append(bytes(16), {"more": 1})
        assert collect(store, [garbage]) == []
        assert ledger.get(bytes(16)) == {"more": 1}
    with Ledger(store.ledger_dir, "free") as reader:
        assert collect(store, [garbage]) == [garbage]
        assert reader.get(bytes(16)) == {"more": 1}
        reader.append(bytes(15) + b"1", {"after": "cleaning"})
    assert not any(path.name.startswith(".doomed") for path in store.ledger_dir.iterdir())


def test_a_run_that_comes_to_reach_an_artifact_saves_it(place: Path) -> None:
    store = Store()
    shutil.rmtree(place / "one")
    found = [item for item in find_garbage(store, grace_s=0) if item.kind == "artifact"]
    store.record_run("short", place / "two", artifacts=[found[0].path.name])
    assert collect(store, found) == []
    assert found[0].path.is_dir()


def test_unfinished_work_goes_once_nobody_wants_it(place: Path) -> None:
    store = Store()
    wanted, claimed, free = "a" * 64, "b" * 64, "c" * 64
    for digest in (wanted, claimed, free):
        (store.work_dir(digest) / "checkpoint").write_text("x")
    store.record_run("short", place / "two", artifacts=[wanted])
    with store.claim(claimed) as held:
        assert held
        assert [item.path.name for item in collect(store, find_garbage(store, grace_s=0))] == [free[:32]]
    assert kinds(store) == ["work"]


def test_staged_folders_go_with_the_process_that_made_them(place: Path) -> None:
    store = Store()
    mine = store.stage("step")
    code = "from caiflow.engine.store.artifacts import Store; print(Store().stage('step'))"
    dead = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    elsewhere = dead.with_name(dead.name.replace(socket.gethostname(), "elsewhere"))
    elsewhere.mkdir()
    assert [item.path for item in find_garbage(store, grace_s=0)] == [dead]
    week = time.time() - 8 * 86400
    os.utime(elsewhere, (week, week))
    assert {item.path for item in find_garbage(store)} == {elsewhere}
    assert mine.is_dir()


def test_what_a_kill_left_half_removed_goes_next_time(place: Path) -> None:
    store = Store()
    shutil.rmtree(place / "one")
    (artifact,) = [item for item in find_garbage(store, grace_s=0) if item.kind == "artifact"]
    artifact.path.rename(artifact.path.with_name(f".doomed-{artifact.path.name}"))
    assert artifact.path not in store.artifacts()
    assert len(list(store.artifacts())) == 2
    collect(store, find_garbage(store, grace_s=0))
    assert sum(1 for _ in store.artifacts_dir.glob("??/*")) == 2


def test_what_a_kill_left_half_removed_is_not_in_the_way_of_the_same_made_anew(place: Path) -> None:
    store = Store()
    shutil.rmtree(place / "one")
    (artifact,) = [item for item in find_garbage(store, grace_s=0) if item.kind == "artifact"]
    shutil.copytree(artifact.path, artifact.path.with_name(f".doomed-{artifact.path.name}"))
    assert len(collect(store, [artifact])) == 1
    collect(store, find_garbage(store, grace_s=0))
    assert sum(1 for _ in store.artifacts_dir.glob("??/*")) == 2


def test_what_is_gone_before_it_was_looked_at_counts_as_just_changed(place: Path) -> None:
    staged = Store().stage("step")
    staged.rmdir()
    size, newest = _size_and_time(staged)
    assert (size, newest > time.time() - 60) == (0, True)


def test_a_run_of_another_machine_keeps_what_it_has_for_a_week(place: Path) -> None:
    store = Store()
    (record,) = [path for path, run in store.run_records() if run and run.run_dir == place / "one"]
    shutil.rmtree(place / "one")
    assert kinds(store) == ["artifact", "run"]
    record.write_text(record.read_text().replace(socket.gethostname(), "elsewhere"))
    assert kinds(store) == []
    week = time.time() - 8 * 86400
    os.utime(record, (week, week))
    assert kinds(store) == ["artifact", "run"]


def test_nothing_goes_while_a_runs_record_can_not_be_read(place: Path) -> None:
    store = Store()
    shutil.rmtree(place / "one")
    record = next(path for path, run in store.run_records() if run and run.run_dir == place / "two")
    found = find_garbage(store, grace_s=0)
    record.write_bytes(b"")
    with pytest.raises(StoreError, match="can't be read"):
        find_garbage(store, grace_s=0)
    with pytest.raises(StoreError, match="can't be read"):
        collect(store, found)
    assert all(item.path.exists() for item in found), "under its own name: a run may reach it"
    record.unlink()
    assert kinds(store) == ["artifact", "artifact", "artifact", "run"]


def test_what_was_paid_for_stays_when_a_runs_folder_was_moved(place: Path) -> None:
    store = Store()
    with Ledger(store.ledger_dir, "paid") as ledger:
        ledger.append(bytes(16), {"out": []})
    store.record_run("short", place / "one", ledgers=["paid"])
    (place / "one").rename(place / "moved")
    found = find_garbage(store, grace_s=0)
    assert "ledger" not in {item.kind for item in found}
    collect(store, found)
    with Ledger(store.ledger_dir, "paid") as ledger:
        assert ledger.get(bytes(16)) == {"out": []}
    assert [item.path.name for item in find_garbage(store, grace_s=0, paid=True)] == ["paid"]


@pytest.mark.parametrize(
    ("artifacts", "runs"), [(300, 30), pytest.param(10_000, 1_000, marks=pytest.mark.soak)], ids=["small", "large"]
)
def test_cleaning_costs_a_few_times_what_bare_removing_does(tmp_path: Path, artifacts: int, runs: int) -> None:
    """What grows with artifacts times runs would be hundreds of times as dear: each folder asks what all runs reach."""
    bare = list(fill(tmp_path / "bare", artifacts, runs).artifacts_dir.glob("??/*"))[: artifacts * 9 // 10]
    before = time.process_time()
    for path in bare:
        shutil.rmtree(path)
    bare_s = time.process_time() - before
    store = fill(tmp_path / "home", artifacts, runs)
    before = time.process_time()
    removed = collect(store, find_garbage(store))
    spent_s = time.process_time() - before
    assert sum(item.kind == "artifact" for item in removed) == artifacts * 9 // 10
    assert sum(1 for _ in store.artifacts()) == artifacts // 10
    print(f"{artifacts:,} artifacts x {runs:,} runs: {spent_s:.2f} s of CPU, bare removing {bare_s:.2f} s")
    assert spent_s < 15 * bare_s
