"""Several workers train one model as one worker with a larger batch would, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.engine.training.parallel.workers import Seat, place
from caiflow.operators.sft import Sft, SftParams
from support.side_by_side import train_together
from support.small_models import job, lessons, small_model
from support.trainings import train as train_by

FIELDS: dict[str, Any] = {
    "input": "rows",
    "scratch": {"hidden_size": 64, "num_hidden_layers": 2, "tokenizer": {"vocab_size": 400}},
    "learning_rate": 3e-3,
    "num_train_epochs": 2,
}
TWO = Room(processes=2)
CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.side_by_side import train_together
from support.small_models import job, lessons
from caiflow.engine.operator import StepContext
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.operators.sft import Sft, SftParams
fields = {**json.loads(sys.argv[3]), "num_train_epochs": 500}
cluster = Cluster()
cluster.start()
sft = Sft(SftParams.model_validate(fields), StepContext())
train_together(cluster, sft, job(Path(sys.argv[2]), {"rows": lessons()}), Room(processes=2))
"""


def train(folder: Path, rows: Any = None, **fields: Any) -> Job:
    done = job(folder, {"rows": lessons()[:32] if rows is None else rows})
    Sft(SftParams.model_validate({**FIELDS, **fields}), StepContext()).train(done)
    return done


@pytest.mark.soak
@pytest.mark.slow
def test_two_workers_train_as_one_with_twice_the_batch(tmp_path: Path, cluster: Cluster) -> None:
    from safetensors.torch import load_file

    told: list[dict[str, Any]] = []
    work = job(tmp_path / "two", {"rows": lessons()[:32]})
    work.log = lambda **figures: told.append(figures)
    fields = {**FIELDS, "per_device_train_batch_size": 4, "resources": {"workers": 2}}
    train_together(cluster, Sft(SftParams.model_validate(fields), StepContext()), work, TWO)
    one = train(tmp_path / "one", per_device_train_batch_size=8)
    assert work.metrics["steps"] == one.metrics["steps"] == 8
    assert told[-1]["done"] == 8
    assert work.metrics["final_loss"] == pytest.approx(one.metrics["final_loss"], rel=1e-3)
    ours, theirs = (load_file(done.out_dir / "model.safetensors") for done in (work, one))
    assert all((ours[name] - theirs[name]).abs().max() < 2e-3 for name in theirs)
    fields = {"precompute_ref_log_probs": True, "per_device_train_batch_size": 4, "resources": {"workers": 2}}
    model = small_model(tmp_path / "model")
    pairs = train_by(tmp_path / "pairs", "dpo", model, cluster=cluster, **fields)
    alone = train_by(tmp_path / "alone", "dpo", model, per_device_train_batch_size=8)
    assert pairs.metrics["final_loss"] == pytest.approx(alone.metrics["final_loss"], rel=1e-3)


@pytest.mark.soak
@pytest.mark.slow
def test_a_worker_s_error_is_the_step_s(tmp_path: Path, cluster: Cluster) -> None:
    sft = Sft(SftParams.model_validate({**FIELDS, "resources": {"workers": 2}}), StepContext())
    with pytest.raises(StepError, match="row 0: nothing to train on"):
        train_together(cluster, sft, job(tmp_path, {"rows": [{"uid": "0", "prompt": "p"}]}), TWO)


def test_a_training_that_asks_for_no_gpu_sees_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, seen in ((1, "0"), (0, "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        with pytest.raises(StepError, match="2 workers were asked for"):
            train(tmp_path / str(gpus), resources={"workers": 2, "num_gpus": gpus})
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_one_process_of_several_does_not_train_by_itself(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="2 workers were asked for, and there are 1; run it by `caiflow run`"):
        train(tmp_path, resources={"workers": 2})


def test_ranks_go_node_by_node_from_the_first_process_on() -> None:
    seats = [Seat("b", "10.0.0.2", 70, ("1",)), Seat("a", "10.0.0.1", 71, ("0",)), Seat("b", "10.0.0.2", 72, ("0",))]
    first, other, beside = (place(seats, mine) for mine in range(3))
    assert [told["RANK"] for told in (first, other, beside)] == ["0", "2", "1"]
    assert [told["LOCAL_RANK"] for told in (first, other, beside)] == ["0", "0", "1"]
    assert [told["CUDA_VISIBLE_DEVICES"] for told in (first, other, beside)] == ["1,0", "0", "1,0"]
    assert [told["LOCAL_WORLD_SIZE"] for told in (first, other, beside)] == ["2", "1", "2"]
    assert {(told["MASTER_ADDR"], told["MASTER_PORT"], told["WORLD_SIZE"]) for told in (first, other, beside)} == {
        ("10.0.0.2", "70", "3")
    }


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.kill
def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    import json

    script = tmp_path / "child.py"
    script.write_text(CHILD)
    fields = {**FIELDS, "resources": {"workers": 2}, "save_steps": 5}
    tests = str(Path(__file__).parents[2])
    child = subprocess.Popen([sys.executable, str(script), tests, str(tmp_path / "run"), json.dumps(fields)])
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("run/work/checkpoints/*/complete")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(child.pid).children(recursive=True)
    assert len(workers) >= 2
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]


def test_several_workers_make_another_model_and_so_another_identity() -> None:
    def identity(**resources: Any) -> Any:
        params = SftParams.model_validate({**FIELDS, "resources": resources})
        return Sft(params, StepContext()).identity()

    assert identity() == identity(workers=1) == {}
    assert identity(workers=2) != identity(workers=4)
