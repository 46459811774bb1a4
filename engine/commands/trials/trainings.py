"""Trials of training: a few steps in each number format, in 4 bits, and on all devices at once.

Run in a trial's own process. Trains through the operator that `op: sft` names, on a dozen made-up lessons.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from caiflow.engine.commands.trials.bench import Check, SkippedError
from caiflow.engine.commands.trials.device import bundled, gpus
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import Job, ModelOperator, StepContext
from caiflow.engine.registry import operator
from caiflow.engine.rows.columns import Row
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.engine.run.units import StepResult

STEPS = 4
ROWS_A_DEVICE = 4
NEAR = 0.02
"""How far, relatively, the loss of several devices may lie from that of one with all their rows."""
_THINGS = ("cloud", "river", "lamp", "violin", "carpet", "tower", "orchard", "ferry")


def formats(folder: Path) -> Iterator[Check]:
    """Train all weights in float32, and an adapter over weights in bfloat16."""
    yield Check("train float32", lambda: _learnt(_train(folder / "float32", bundled(), bf16=False)))
    half = bundled(dtype="bfloat16")
    yield Check("train bfloat16", lambda: _learnt(_train(folder / "bfloat16", half, bf16=True, lora={"rank": 8})))


def quantised(folder: Path) -> Iterator[Check]:
    """Train an adapter over weights in 4 bits."""
    yield Check("train 4 bits", lambda: _quantised(folder))


def _quantised(folder: Path) -> str:
    if not find_spec("bitsandbytes"):
        raise SkippedError("bitsandbytes isn't installed; `lora.quantization` needs it")
    lora = {"rank": 8, "quantization": "4bit"}
    return _learnt(_train(folder / "4bit", _even_model(folder / "model"), lora=lora, learning_rate=1e-2))


def spread(folder: Path) -> Iterator[Check]:
    """Train on all GPUs at once, or in two processes on the CPU, and compare with one device that takes all the rows."""
    yield Check("train on all", lambda: _spread(folder))


def _spread(folder: Path) -> str:
    workers = len(gpus()) or 2
    if workers == 1:
        raise SkippedError("there is one GPU, so nothing to share gradients with")
    alone = _losses(_train(folder / "one", bundled(), bf16=False, per_device_train_batch_size=ROWS_A_DEVICE * workers))
    resources = {"workers": workers, "num_gpus": float(bool(gpus()))}
    together = _losses(_train(folder / "all", bundled(), bf16=False, resources=resources))
    if not math.isclose(alone[-1], together[-1], rel_tol=NEAR):
        raise AssertionError(f"loss {together[-1]:.4f} on {workers} devices, {alone[-1]:.4f} on one with all the rows")
    how = f"{workers} GPUs (nccl)" if gpus() else f"{workers} processes on the CPU (gloo)"
    return f"{how}: loss {together[-1]:.3f}, on one device {alone[-1]:.3f}"


def _train(folder: Path, model: ModelSource, **fields: Any) -> Job:
    """Carry out `op: sft` on the lessons and return its job."""
    sft = operator("sft")
    given = {"input": "rows", "model": "model", "max_steps": STEPS, "learning_rate": 1e-3, "logging_steps": 1}
    given |= {"per_device_train_batch_size": ROWS_A_DEVICE, "num_train_epochs": STEPS, **fields}
    step = sft(sft.params_type.model_validate(given), StepContext())
    assert isinstance(step, ModelOperator)
    (folder / "work").mkdir(parents=True)
    job = Job(folder / "out", {"rows": _lessons(folder / "rows")}, {"model": model}, seed=1, work_dir=folder / "work")
    wanted = step.params.resources
    if wanted.workers == 1:
        step.train(job)
        return job
    cluster = Cluster()
    cluster.start()
    try:
        cluster.submit(_Training(step, job), "train", Room(wanted.num_gpus or 0.0, processes=wanted.workers))
        while cluster.busy():
            for finished in cluster.wait(0.5):
                if finished.error:
                    raise finished.error
    finally:
        cluster.close()
    return job


@dataclass(frozen=True, slots=True)
class _Training:
    """A training as work for several processes."""

    step: ModelOperator[Any]
    job: Job

    def run(self, _report: Report) -> Mapping[str, StepResult]:
        """Train."""
        self.step.train(self.job)
        return {}


def _learnt(job: Job) -> str:
    losses = _losses(job)
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        raise AssertionError(f"the loss doesn't go down: {', '.join(f'{loss:.3f}' for loss in losses)}")
    return f"{len(losses)} steps on {gpus()[0] if gpus() else 'the CPU'}, loss {losses[0]:.3f} to {losses[-1]:.3f}"


def _losses(job: Job) -> list[float]:
    from caiflow.engine.training.loop import HISTORY

    points = map(json.loads, (job.out_dir / HISTORY).read_text(encoding="utf-8").splitlines())
    losses = [point["loss"] for point in points if "loss" in point]
    return [math.nan if loss is None else loss for loss in losses]  # what isn't finite is kept as null


def _lessons(folder: Path) -> Any:
    """Write conversations whose replies the bundled model finds unlikely, so that there is something to learn."""
    from caiflow.engine.rows.folder import Rows, RowsWriter

    with RowsWriter(folder) as writer:
        writer.write_rows([_lesson(number) for number in range(64)])
    return Rows(folder)


def _lesson(number: int) -> Row:
    thing = _THINGS[number % len(_THINGS)]
    asked, said = f"What of {thing} {number}?", f"A {thing} sleeps under green wool until winter ends."
    return {"uid": str(number), "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def _even_model(folder: Path) -> ModelSource:
    """Save a small model with random weights whose widths, unlike the bundled model's, the 4-bit kernels take."""
    from transformers import AutoTokenizer

    from caiflow.engine.training.scratch import Scratch, random_model

    tokenizer = AutoTokenizer.from_pretrained(bundled().path)
    shape = Scratch(hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    random_model(shape, tokenizer, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSource(str(folder), identity="even")
