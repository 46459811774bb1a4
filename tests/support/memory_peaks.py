"""What a training takes of this process's memory, beside what `plan` says that it needs; for the soak test and the benchmarks.

Run in a process of its own, within tests/: `python -m support.memory_peaks KIND FOLDER full|lora BATCH LENGTH`. A short
training comes first, so that libraries and their threads aren't counted; then the kernel's own high-water mark is reset.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.model_files import model_settings, shape_of
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.training.memory import Load, Setting, need
from support.small_models import saved, small_model
from support.trainings import TRAINERS, reward_model

TESTS = Path(__file__).parents[1]
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Have the C library give freed memory back at once, as an allocator of a GPU's memory keeps count of it."""
WORDS = ["bake", "a", "cake", "paint", "the", "wall", "first", "take", "your", "time", "then", "check", "it", "twice"]


def peak(kind: str, model: Path, way: str, batch: int, length: int) -> dict[str, float]:
    """Return the bytes that one step after another `measured` and those `planned`, of a process of its own."""
    command = [sys.executable, "-m", "support.memory_peaks", kind, str(model), way, str(batch), str(length)]
    done = subprocess.run(command, cwd=TESTS, env={**os.environ, **RETURNED}, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _said(words: int, dice: random.Random) -> str:
    return " ".join(dice.choices(WORDS, k=words))


def _rows(kind: str, count: int, length: int) -> list[dict[str, Any]]:
    """Return rows that are cut at `length` tokens."""
    dice = random.Random(5)
    asked = [[{"role": "user", "content": f"{place} {_said(6, dice)}"}] for place in range(count)]
    if kind == "sft":
        answers = [{"role": "assistant", "content": _said(2 * length, dice)} for _ in asked]
        return [{"uid": str(i), "messages": [*turns, answers[i]]} for i, turns in enumerate(asked)]
    long = [{"chosen": _said(2 * length, dice), "rejected": _said(2 * length, dice), "p_chosen": 0.8} for _ in asked]
    return [{"uid": str(i), "prompt": turns, **long[i]} for i, turns in enumerate(asked)]


def _train(folder: Path, kind: str, count: int, models: dict[str, ModelSource], **fields: Any) -> tuple[Any, dict[str, Any]]:
    """Train; return the operator and its figures."""
    operator_type, params_type, own = TRAINERS[kind]
    work = folder / "work"
    work.mkdir(parents=True)
    job = Job(folder / "out", {"rows": saved(folder / "in", _rows(kind, count, fields["max_length"]))}, models, work_dir=work)
    given = {"input": "rows", "model": "base", **own, **fields, "num_train_epochs": 1, "learning_rate": 1e-6}
    operator = operator_type(params_type.model_validate(given), StepContext())
    operator.train(job)
    return operator, job.metrics


def _load(operator: Any, metrics: dict[str, Any]) -> Load:
    """Return what goes through the model at once, replies that are drawn as long as they came to be."""
    load: Load = operator.at_once()
    if "completions_max_length" not in metrics:
        return load
    return load._replace(tokens=int(metrics["tokens"] / metrics["rows"] + metrics["completions_max_length"]))


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def main(kind: str, model: Path, way: str, batch: int, length: int) -> None:
    """Print what was measured and what was planned."""
    fields: dict[str, Any] = {"lora": {"rank": 16}} if way == "lora" else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = small_model(folder / "small")
        models = {"base": small}
        if kind in ("grpo", "rloo", "ppo"):
            models["judge"] = reward_model(folder / "judge", small)
        short = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_length": 64}
        replies = {"num_generations": 2, "max_completion_length": 16} if kind in ("grpo", "rloo") else {}
        _train(folder / "before", kind, 4, models, **fields, **short, **replies)
        sizes = {"per_device_train_batch_size": batch, "per_device_eval_batch_size": batch, "max_length": length}
        replies |= {"max_completion_length": length - 64, "max_steps": 2} if "judge" in models else {}
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark is what there is now
        before = _resident("VmRSS")
        models["base"] = ModelSource(path=str(model), identity="measured")
        operator, metrics = _train(folder / "measured", kind, 2 * batch, models, **fields, **sizes, **replies)
        measured = _resident("VmHWM") - before
        beside: Any = [(shape_of(model_settings(Path(models[one.model].path))), one) for one in operator.read_beside()]
        shape = shape_of(model_settings(model))
        assert shape is not None
        planned = need(shape, operator.params, _load(operator, metrics), beside, Setting(gpu=False))
    print(json.dumps({"measured": measured, "planned": planned.peak, "weights": shape.weights}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
