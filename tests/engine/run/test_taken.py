"""What a step took of the machines, as run.json tells it: the most memory of its process, and GPU-hours where it had GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from caiflow.engine.plan.components import Resolver
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.run.folder import RunFolder
from caiflow.engine.run.runner import run
from caiflow.engine.run.units import StepResult
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.journal import Journal, read_run

SPEC = "caiflow: 1\nsteps: {rows: {op: load, source: rows.jsonl}}\n"
MEMORY = """
from caiflow.engine.machine import forget_peaks, peaks
large = bytearray(200 << 20)
del large
before = peaks()["peak_memory_bytes"]
print(before, forget_peaks(), peaks()["peak_memory_bytes"])
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets how much memory a process had at its most")
def test_the_most_memory_is_that_since_it_was_forgotten() -> None:
    before, forgot, since = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True).stdout.split()
    assert forgot == "True"
    assert int(before) > 200 << 20
    assert int(since) < int(before) - (150 << 20)


def test_of_several_processes_the_one_that_had_most_is_told() -> None:
    first = StepResult(counts={"calls": 2}, peaks={"peak_memory_bytes": 5}, gpus=4)
    others = [StepResult(counts={"calls": 1}, peaks={"peak_memory_bytes": 9, "peak_gpu_memory_bytes": 3}), StepResult()]
    whole = first.counted_with(others)
    assert whole.counts == {"calls": 3}
    assert whole.peaks == {"peak_memory_bytes": 9, "peak_gpu_memory_bytes": 3}
    assert whole.gpus == 4


@pytest.mark.parametrize(("gpus", "hours"), [(2.0, 1.5), (0.0, None)])
def test_gpu_hours_are_the_gpus_of_a_step_for_its_share_of_the_time(place: Path, gpus: float, hours: float | None) -> None:
    spec, store = load_spec(place / "spec.yaml"), Store(place / "home")
    with RowsWriter(store.stage("rows"), {"uid": "text"}) as writer:
        writer.write_rows([{"uid": "u"}])
    made = StepResult(writer.dir, None, 1, seconds=2700.0, gpus=gpus)
    with Journal(place / "run") as journal:
        steps = [spec.steps["rows"]]
        folder = RunFolder(Resolver(spec, store), place / "run", journal, steps, threading.Event())
        folder.open()
        folder.start(steps[0])
        folder.seal(steps[0], made, {})
    assert read_run(place / "run")["steps"]["rows"].get("gpu_hours") == hours


@pytest.mark.slow
def test_a_run_tells_the_memory_of_what_it_made_and_none_of_what_was_there(place: Path, ray_address: str) -> None:
    told = []
    for out in (place / "first", place / "second"):
        run(load_spec(place / "spec.yaml"), Store(place / "home"), out, address=ray_address)
        told.append(json.loads((out / "run.json").read_text())["steps"]["rows"])
    made, cached = told
    assert (made["status"], cached["status"]) == ("done", "cached")
    assert made["peak_memory_bytes"] > 10 << 20
    assert "peak_memory_bytes" not in cached
