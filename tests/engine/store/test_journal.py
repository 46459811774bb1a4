"""The journal: what it writes, what survives a crash, and when a run counts as dead."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from caiflow.engine.store.journal import DEAD_AFTER_S, Event, Journal, read_run, true_status
from caiflow.engine.version import VERSION
from support.events import read_events

STEPS = [{"name": "red", "op": "load", "inputs": []}, {"name": "answer", "op": "generate", "inputs": ["red"]}]


def finish(journal: Journal) -> None:
    journal.emit("run_started", name="cai", spec="abc", steps=STEPS)
    journal.emit("step_started", step="red")
    journal.emit(
        "step_done", step="red", status="done", rows_in=0, rows_out=3, calls=3, seconds=0.5, metrics={"files": 1}, digest="d1"
    )
    journal.emit("step_done", step="answer", status="failed", error="no model")
    journal.emit("run_done", status="failed")


def test_run_json_holds_what_the_events_said(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        finish(journal)
    run = read_run(tmp_path)
    assert (run["caiflow"], run["name"], run["spec"], run["status"]) == (VERSION, "cai", "abc", "failed")
    assert run["steps"]["red"] == {
        "op": "load", "digest": "d1", "status": "done", "rows_in": 0, "rows_out": 3, "calls": 3, "seconds": 0.5,
        "metrics": {"files": 1}, "inputs": [],
    }  # fmt: skip
    assert run["steps"]["answer"]["error"] == "no model"
    assert run["finished"] >= run["started"]


def test_a_number_that_json_hasn_t_is_null_in_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.emit("run_started", name="cai", steps=STEPS)
        journal.emit("step_done", step="red", status="done", metrics={"rates": [math.nan, 0.5], "perplexity": math.inf})

    def refuse(name: str) -> None:
        raise AssertionError(f"a bare {name}")

    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    run = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert run["steps"]["red"]["metrics"] == {"rates": [None, 0.5], "perplexity": None}


def test_listener_hears_every_event_in_order(tmp_path: Path) -> None:
    heard: list[Event] = []
    with Journal(tmp_path, heard.append) as journal:
        finish(journal)
    assert heard == list(read_events(tmp_path))
    assert [e["event"] for e in heard] == ["run_started", "step_started", "step_done", "step_done", "run_done"]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")])
def test_leaving_by_an_exception_closes_the_run(tmp_path: Path, error: type[BaseException], status: str) -> None:
    def run_and_raise() -> None:
        with Journal(tmp_path) as journal:
            journal.emit("run_started", name="cai", steps=STEPS)
            journal.emit("step_started", step="red")
            raise error

    with pytest.raises(error):
        run_and_raise()
    run = read_run(tmp_path)
    assert run["status"] == status
    assert [step["status"] for step in run["steps"].values()] == ["interrupted", "not run"]


def test_cut_last_line_is_left_out(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        finish(journal)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [e["event"] for e in read_events(tmp_path)][-1] == "step_done"


def test_killed_driver_is_interrupted_at_once(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\nfrom caiflow.engine.store.journal import Journal\n"
        "with Journal(pathlib.Path(sys.argv[1])) as j:\n"
        "    j.emit('run_started', name='cai', steps=[])\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        assert read_run(tmp_path)["status"] == "running"
        driver.kill()
        driver.wait()
    assert read_run(tmp_path)["status"] == "interrupted"


def test_silent_driver_on_another_host_is_interrupted() -> None:
    now = time.time()
    run = {"status": "running", "heartbeat": now - DEAD_AFTER_S + 1, "host": "elsewhere", "pid": 1}
    assert true_status(run, now) == "running"
    assert true_status(run, now + 2) == "interrupted"


def test_heartbeat_moves_while_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caiflow.engine.store.journal.HEARTBEAT_S", 0.05)
    with Journal(tmp_path) as journal:
        journal.emit("run_started", name="cai", steps=[])
        first = json.loads((tmp_path / "run.json").read_text())["heartbeat"]
        until = time.monotonic() + 60
        while (beat := json.loads((tmp_path / "run.json").read_text())["heartbeat"]) == first and time.monotonic() < until:
            time.sleep(0.02)
        assert beat > first


def test_heartbeat_goes_on_once_the_disk_takes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caiflow.engine.store.journal.HEARTBEAT_S", 0.02)
    in_the_way = tmp_path / f".run.json.{os.getpid()}"
    with Journal(tmp_path):
        while not in_the_way.is_dir():
            with suppress(FileExistsError):  # just being written
                in_the_way.mkdir()
        time.sleep(0.2)
        last = json.loads((tmp_path / "run.json").read_text())["heartbeat"]
        in_the_way.rmdir()
        until = time.monotonic() + 60
        while (beat := json.loads((tmp_path / "run.json").read_text())["heartbeat"]) == last and time.monotonic() < until:
            time.sleep(0.02)
    assert beat > last


def test_run_json_is_whole_at_every_moment(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.emit("run_started", name="cai", steps=STEPS)
        for i in range(100):
            journal.emit("step_started", step="red")
            assert json.loads((tmp_path / "run.json").read_text())["pid"] == os.getpid(), i
