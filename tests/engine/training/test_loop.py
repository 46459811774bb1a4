"""A training run survives `kill -9` and ends as if nothing had happened; figures by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.operator import Job, StepContext
from caiflow.engine.store.checkpoints import COMPLETE, have_rest, last_checkpoint, steps_kept
from caiflow.engine.training.loop import HISTORY, LOOK_S, figures, total_steps
from caiflow.operators.sft import Sft, SftParams
from support.small_models import SHAPE, job, lessons

FIELDS: dict[str, Any] = {
    "input": "rows",
    "scratch": {"hidden_size": 64, "num_hidden_layers": 2, "tokenizer": {"vocab_size": 400}},
    "num_train_epochs": 6,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 2,
    "lr_scheduler_type": "cosine",
    "save_steps": 5,
}
CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.small_models import job, lessons
from caiflow.engine.operator import StepContext
from caiflow.operators.sft import Sft, SftParams
Sft(SftParams.model_validate(json.loads(sys.argv[3])), StepContext()).train(job(Path(sys.argv[2]), {"rows": lessons()}))
"""


ONE_OF_TWO = """
import sys, time
from pathlib import Path
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
sys.path.insert(0, sys.argv[1])
from support.small_models import job
from caiflow.engine.operator import Job
from caiflow.engine.training import loop
from caiflow.operators.sft import SftParams
folder, mine = Path(sys.argv[2]), int(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=mine, world_size=2)
work = Job(folder / "out", {}, {}, work_dir=folder / f"as seen by {mine}")
args = TrainingArguments(output_dir=str(folder), use_cpu=True, logging_steps=1)
class Trainer:
    args = args
    is_world_process_zero = staticmethod(lambda: mine == 0)
watcher = loop._watcher(SftParams.model_validate({"input": "rows", "model": "base"}), work, 1)
saves = []
for late, step in ((0, 1), (1, 2), (2, 3)):  # nobody's clock says that one is due, the first one's alone, the other's alone
    watcher.saved_at = time.monotonic() - (2 * loop.CHECKPOINT_S if late == mine + 1 else 0)
    saves.append(watcher.on_step_end(args, TrainerState(global_step=step, max_steps=9), TrainerControl()).should_save)
print(saves, loop._resumed_from(Trainer, work).name, flush=True)
"""


def train(folder: Path, fields: dict[str, Any]) -> Job:
    done = job(folder, {"rows": lessons()})
    Sft(SftParams.model_validate(fields), StepContext()).train(done)
    return done


@pytest.mark.soak
@pytest.mark.kill
@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_a_run_killed_between_checkpoints_ends_as_an_undisturbed_one(tmp_path: Path, order: str) -> None:
    import torch
    from safetensors.torch import load_file

    fields = {**FIELDS, "train_sampling_strategy": order}
    undisturbed = train(tmp_path / "undisturbed", fields)
    disturbed = tmp_path / "disturbed"
    checkpoint = disturbed / "work" / "checkpoints" / "checkpoint-10" / COMPLETE
    tests = str(Path(__file__).parents[2])
    child = subprocess.Popen([sys.executable, "-c", CHILD, tests, str(disturbed), json.dumps(fields)])
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (disturbed / "out" / "model.safetensors").exists()
    resumed = train(disturbed, fields)
    assert (resumed.out_dir / HISTORY).read_text() == (undisturbed.out_dir / HISTORY).read_text()
    for name in ("train_loss", "final_loss", "steps"):
        assert resumed.metrics[name] == undisturbed.metrics[name]
    ours, theirs = (load_file(done.out_dir / "model.safetensors") for done in (resumed, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_training_rests_behind_a_kept_step_and_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    def begun(folder: Path, log: Any = None) -> Job:
        work = job(folder, {"rows": lessons()})
        work.log = log
        Sft(SftParams.model_validate({**FIELDS, "save_steps": 0, "num_train_epochs": 1}), StepContext()).train(work)
        return work

    work, told, rested = tmp_path / "rested" / "work", [], threading.Event()

    def log(**said: Any) -> None:
        told.append(said)
        if said.get("done") and len(told) == 1:
            have_rest(work, True)
        elif "doing" in said:
            rested.set()

    training = threading.Thread(target=begun, args=(tmp_path / "rested", log))
    training.start()
    assert rested.wait(60)
    kept = steps_kept(work)
    (resting,) = (said["doing"] for said in told if "doing" in said)
    assert 0 < kept < 18
    assert resting == f"rests behind step {kept}, which is kept"
    training.join(3 * LOOK_S)
    assert training.is_alive()
    assert (told[-1], steps_kept(work)) == ({"doing": resting}, kept)
    have_rest(work, False)
    training.join(60)
    undisturbed = begun(tmp_path / "undisturbed")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "rested" / "out", undisturbed.out_dir))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.slow
def test_several_processes_save_and_resume_as_the_first_one_says(tmp_path: Path) -> None:
    def leave_checkpoint(seen_by: int, step: int) -> None:
        place = tmp_path / f"as seen by {seen_by}" / "checkpoints" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        (place / COMPLETE).touch()

    for process, step in ((0, 5), (0, 10), (1, 5)):
        leave_checkpoint(process, step)
    command = [sys.executable, "-c", ONE_OF_TWO, str(Path(__file__).parents[2]), str(tmp_path)]
    two = [subprocess.Popen([*command, str(mine)], stdout=subprocess.PIPE, text=True) for mine in range(2)]
    said = two[0].stdout.readline()  # type: ignore[union-attr]
    assert said.split("] ") == ["[False, True, False", "checkpoint-10\n"]
    leave_checkpoint(1, 10)  # only now does the other's file system show it
    assert two[1].communicate(timeout=240)[0] == said
    assert two[0].wait(240) == two[1].returncode == 0


def test_the_mean_loss_weighs_each_point_by_its_steps() -> None:
    history = [
        {"step": 10, "loss": 4.0, "grad_norm": 1.0, "rewards/margins": 0.5},
        {"step": 15, "loss": 1.0, "grad_norm": 2.0, "learning_rate": 1e-3},
        {"step": 15, "eval_loss": 1.5, "epoch": 3.0},
    ]
    found = figures(history)
    assert found == {
        "train_loss": (4.0 * 10 + 1.0 * 5) / 15,
        "first_loss": 4.0,
        "final_loss": 1.0,
        "eval_loss": 1.5,
        "grad_norm": 2.0,
        "rewards_margins": 0.5,
    }
    assert figures([]) == {}


@pytest.mark.parametrize(("points", "last"), [(1, 1), (7, 3), (40, 10), (300, 30)])
def test_a_figure_is_its_mean_over_the_end_of_the_curve_and_an_evaluation_s_its_last(points: int, last: int) -> None:
    values = [float(step % 7) for step in range(points)]
    history = [{"step": i + 1, "loss": 1.0, "rewards/accuracies": value} for i, value in enumerate(values)]
    history += [{"step": points, "eval_rewards/accuracies": value} for value in (0.0, 0.0, 0.75)]
    found = figures(history)
    assert found["rewards_accuracies"] == pytest.approx(sum(values[-last:]) / last)
    assert found["eval_rewards_accuracies"] == 0.75


def test_an_easy_first_batch_is_not_where_a_training_began() -> None:
    losses = [1.0, 3.0, 2.9, 3.1, *[2.0] * 36]
    found = figures([{"step": i + 1, "loss": loss} for i, loss in enumerate(losses)])
    assert found["first_loss"] == pytest.approx(2.5)
    assert found["train_loss"] == pytest.approx(sum(losses) / 40)
    assert found["train_loss"] < found["first_loss"]


@pytest.mark.parametrize(
    ("rows", "fields", "expected"),
    [
        (10, {"per_device_train_batch_size": 4}, 3),
        (10, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 3),
        (10, {"per_device_train_batch_size": 5, "num_train_epochs": 1.5}, 3),
        (10, {"max_steps": 7}, 7),
    ],
)
def test_steps_are_counted_as_the_library_does(rows: int, fields: dict[str, Any], expected: int) -> None:
    params = SftParams.model_validate({"input": "rows", "model": "base", **fields})
    assert total_steps(params, rows) == expected


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    work = job(tmp_path, {"rows": lessons()[:8]})
    work.log = lambda **figures: told.append(figures)
    fields = {**FIELDS, "num_train_epochs": 1, "scratch": SHAPE, "logging_steps": 1}
    Sft(SftParams.model_validate(fields), StepContext()).train(work)
    assert told[-1]["done"] == told[-1]["total"] == 4
    assert told[-1]["loss"] > 0
    points = [json.loads(line) for line in (work.out_dir / HISTORY).read_text().splitlines()]
    assert [point["step"] for point in points] == [1, 2, 3, 4]
