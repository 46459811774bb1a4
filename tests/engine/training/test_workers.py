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
from caiflow.operators.sft import Sft, SftParams
from support.small_models import job, lessons

FIELDS: dict[str, Any] = {
    "input": "rows",
    "scratch": {"hidden_size": 64, "num_hidden_layers": 2, "tokenizer": {"vocab_size": 400}},
    "learning_rate": 3e-3,
    "num_train_epochs": 2,
}
CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.small_models import job, lessons
from caiflow.engine.operator import StepContext
from caiflow.operators.sft import Sft, SftParams
if __name__ == "__main__":
    fields = {**json.loads(sys.argv[3]), "num_train_epochs": 500}
    Sft(SftParams.model_validate(fields), StepContext()).train(job(Path(sys.argv[2]), {"rows": lessons()}))
"""


def train(folder: Path, rows: Any = None, **fields: Any) -> Job:
    done = job(folder, {"rows": lessons()[:32] if rows is None else rows})
    Sft(SftParams.model_validate({**FIELDS, **fields}), StepContext()).train(done)
    return done


@pytest.mark.soak
@pytest.mark.slow
def test_two_workers_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    told: list[dict[str, Any]] = []
    work = job(tmp_path / "two", {"rows": lessons()[:32]})
    work.log = lambda **figures: told.append(figures)
    fields = {**FIELDS, "per_device_train_batch_size": 4, "resources": {"workers": 2}}
    Sft(SftParams.model_validate(fields), StepContext()).train(work)
    one = train(tmp_path / "one", per_device_train_batch_size=8)
    assert work.metrics["steps"] == one.metrics["steps"] == 8
    assert told[-1]["done"] == 8
    assert work.metrics["final_loss"] == pytest.approx(one.metrics["final_loss"], rel=1e-3)
    ours, theirs = (load_file(done.out_dir / "model.safetensors") for done in (work, one))
    assert all((ours[name] - theirs[name]).abs().max() < 2e-3 for name in theirs)


@pytest.mark.soak
@pytest.mark.slow
def test_a_worker_s_error_is_the_step_s(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="row 0: nothing to train on"):
        train(tmp_path, [{"uid": "0", "prompt": "p"}], resources={"workers": 2})


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
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_several_workers_make_another_model_and_so_another_identity() -> None:
    def identity(**resources: Any) -> Any:
        params = SftParams.model_validate({**FIELDS, "resources": resources})
        return Sft(params, StepContext()).identity()

    assert identity() == identity(workers=1) == {}
    assert identity(workers=2) != identity(workers=4)
