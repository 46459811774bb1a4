"""One training run of any of the libraries' trainers: settings, progress, checkpoints, resume after a kill, figures.

Owns what lies around a trainer. Never knows which loss it computes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from caiflow.engine.display.trackers import TELLING, finish, prepare
from caiflow.engine.llm.local.lean import import_lean
from caiflow.engine.operator import Job
from caiflow.engine.store.checkpoints import (
    CHECKPOINTS,
    is_to_rest,
    last_checkpoint,
    mark_complete,
    seen_checkpoint,
    steps_of,
)
from caiflow.engine.training.finite import Finite, largest, no_number
from caiflow.engine.training.parallel import sharding
from caiflow.engine.training.parallel.workers import first_says
from caiflow.engine.training.params import TRAINER_FIELDS, TrainingParams
from caiflow.engine.training.private import find_adapters_once, score_learnt_alone
from caiflow.engine.training.quantization import train_in_float32

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

HISTORY = "_history.jsonl"
"""The loss curve, one JSON object per line, beside the saved model."""

CHECKPOINT_S = 120.0
LOOK_S = 0.25
"""How often a training that rests looks whether it may go on."""
CURVE_POINTS = 1000
_LIBRARIES = ("datasets", "peft", *TELLING)
"""What tries to import most, and every training needs."""

T = TypeVar("T")


def configure(kind: type[T], params: TrainingParams, job: Job, *, rows: int, **more: Any) -> T:
    """Return a trainer's configuration of class `kind`: the step's fields under their own names, then `more`.

    `rows` is the number of training rows; the density of the loss curve depends on it.
    """
    import torch

    gpu = torch.cuda.is_available()
    fields = {name: getattr(params, name) for name in TRAINER_FIELDS | params.own_fields}
    fields["lr_scheduler_kwargs"] = dict(params.lr_scheduler_kwargs) or None
    evaluates = params.eval_input is not None
    settings: dict[str, Any] = {
        **fields,
        "output_dir": str(checkpoints(job)),
        "seed": seed_of(job),
        "data_seed": seed_of(job),
        "bf16": in_bf16(params),
        "use_cpu": not gpu,
        **sharding.settings(params),
        "eval_strategy": params.eval_strategy if evaluates else "no",
        "logging_strategy": "steps",
        "logging_steps": params.logging_steps or max(1, total_steps(params, rows) // CURVE_POINTS),
        "save_strategy": "no",
        "save_total_limit": 2,
        **prepare(params.report_to, f"{job.step} {job.work_dir.name[:8]}".strip()),
        "logging_nan_inf_filter": False,  # it would hide what `Finite` is to see
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,  # there are none, and PPO's value head is used outside the forward pass
    }
    return kind(**{**settings, **more})


def in_bf16(params: TrainingParams) -> bool:
    """Say whether a step computes in bfloat16: what it asks for, by default whether a GPU has it."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported() if params.bf16 is None else params.bf16


def seed_of(job: Job) -> int:
    """Return the job's seed in the range that numpy takes."""
    return job.seed % 2**32


def total_steps(params: TrainingParams, rows: int) -> int:
    """Return the optimizer steps of a run over `rows` rows."""
    if params.max_steps > 0:
        return params.max_steps
    batches = math.ceil(rows / (params.per_device_train_batch_size * params.resources.workers))
    return math.ceil(params.num_train_epochs * math.ceil(batches / params.gradient_accumulation_steps))


def checkpoints(job: Job) -> Path:
    """Return the folder of checkpoints, made if need be."""
    folder = job.work_dir / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fit(trainer: Trainer, params: TrainingParams, job: Job, *, cycle: int = 1) -> None:
    """Train to the end, from the last checkpoint if there is one; figures go to `job.metrics`, the loss curve to the output.

    A resumed run takes the same steps as an undisturbed one: rows in the same order, optimizer and random state as they were.
    Checkpoints are made at multiples of `cycle` steps only.
    """
    if params.lora:
        train_in_float32(trainer.model)
        find_adapters_once(trainer.model)
    trainer.remove_callback(_printer())
    trainer.add_callback(_watcher(params, job, cycle))
    score_learnt_alone(trainer.model)
    shell = sharding.shell_of(trainer) if params.division else None
    resume = _resumed_from(trainer, job)
    started, first = time.monotonic(), steps_of(resume)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    seconds = time.monotonic() - started
    if shell is None:
        _forget_optimizer(trainer)
    else:
        sharding.put_together(trainer, shell, lambda: _forget_optimizer(trainer))
    if trainer.is_world_process_zero():
        history = [_figures_of(point) for point in trainer.state.log_history if "train_runtime" not in point]
        write_history(job.out_dir, history)
        finish(params.report_to)
        job.metrics.update(figures(history))
        job.metrics |= {"steps": trainer.state.global_step, "seconds": round(seconds, 3)}
        if job.metrics.get("tokens") and trainer.state.global_step > first:
            share = (trainer.state.global_step - first) / trainer.state.global_step
            seen = job.metrics["tokens"] * (trainer.state.epoch or 0.0) * share
            job.metrics["tokens_per_second"] = round(seen / seconds, 1)


def _resumed_from(trainer: Trainer, job: Job) -> Path | None:
    """Return the checkpoint to go on from, the same in all processes: a shared file system may show one less than another."""
    folder = checkpoints(job)
    last = last_checkpoint(folder, clean=trainer.is_world_process_zero())
    (step,) = first_says(steps_of(last), device=trainer.args.device)
    return seen_checkpoint(folder, step)


def _forget_optimizer(trainer: Trainer) -> None:
    """Free what only further steps would need: saving wants the device's memory for the saved model."""
    for holder in (trainer, trainer.callback_handler):
        holder.optimizer = holder.lr_scheduler = None
    trainer.accelerator.free_memory()


def quiet_libraries() -> None:
    """Import the libraries and switch off what isn't wanted of them; call before trainers are imported.

    That is their progress bars and remarks, TRL's way to vLLM, PEFT's look for quantised layers where there can be none, and
    accelerate's for whether PEFT is installed, which it takes from the disk several times a step.
    """
    import_lean(_LIBRARIES)

    import datasets
    import transformers
    from accelerate.utils import imports
    from peft.tuners.lora import model as adapters
    from trl import import_utils

    # rollouts are drawn by the model in training: TRL's own way to vLLM is made for older ones, and takes seconds to import
    import_utils.is_vllm_available = lambda *_, **__: False
    adapters.is_bnb_available = adapters.is_bnb_4bit_available = lambda: "bitsandbytes" in sys.modules
    looked_up = getattr(imports, "_is_package_available", None)
    if looked_up is not None and not hasattr(looked_up, "cache_clear"):
        imports._is_package_available = cache(looked_up)
    os.environ.setdefault("TQDM_DISABLE", "1")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def write_history(out_dir: Path, history: list[dict[str, Any]]) -> None:
    """Write the loss curve beside the model; a figure that is no finite number becomes null."""
    out_dir.mkdir(parents=True, exist_ok=True)
    points = [{name: value if _finite(value) else None for name, value in point.items()} for point in history]
    lines = "".join(json.dumps(point, sort_keys=True, allow_nan=False) + "\n" for point in points)
    (out_dir / HISTORY).write_text(lines, encoding="utf-8")


EARLY = 0.1
"""The part of a training's steps that tells its first loss."""
LAST = 10


def figures(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean, first and last training loss, what every other figure came to, and the last evaluation's figures.

    Means weigh each point by the steps it stands for. The first loss is the mean over a tenth of the steps: a single batch may
    be an easy one. So may the last one be, for which the others are means, too: over the last tenth of their points, and at
    least `LAST` of them or half.
    """
    result: dict[str, float] = {}
    others: dict[str, list[float]] = {}
    early = max((point["step"] for point in history if "loss" in point), default=0) * EARLY
    total, steps = 0.0, 0
    for point in history:
        if "loss" in point:
            total += point["loss"] * (point["step"] - steps)
            if not steps or point["step"] <= early:
                result["first_loss"] = total / point["step"]
            steps = point["step"]
            result["final_loss"] = point["loss"]
        for name, value in point.items():
            if name not in {"step", "loss", "epoch", "learning_rate"} and _finite(value):
                others.setdefault(name, []).append(value)
    for name, values in others.items():
        count = 1 if name.startswith("eval_") else max(len(values) // 10, min(len(values) // 2, LAST), 1)
        result[_plain(name)] = fmean(values[-count:])
    return {"train_loss": total / steps, **result} if steps else result


_COUNTERS = frozenset(
    {"num_tokens", "eval_num_tokens", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "step_time"}
)
"""What depends on the machine, or begins anew when a run is resumed; it stays out of the curve."""


def _figures_of(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name not in _COUNTERS}


def _plain(name: str) -> str:
    return name.replace("/", "_")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _watcher(params: TrainingParams, job: Job, cycle: int) -> TrainerCallback:
    import torch
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        """Reports progress, decides when a checkpoint is due, rests, and lets no weight by that isn't finite."""

        def __init__(self) -> None:
            self.rests = False
            self.saved_at = time.monotonic()
            self.saved_step = 0
            self.told_at = 0.0

        def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            self.saved_step = state.global_step

        def on_optimizer_step(self, _args: Any, state: Any, _control: Any, **kwargs: Any) -> None:
            if not math.isfinite(value := largest(kwargs["model"])):
                raise no_number("a weight is", value, state.global_step + 1, kwargs["lr_scheduler"].get_last_lr()[0])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if state.global_step >= state.max_steps:
                control.should_log = True
            elif state.global_step % cycle == 0 and self._saves(args, state.global_step):
                # a point of the curve never spans a checkpoint, so that a resumed curve equals an undisturbed one
                control.should_save = control.should_log = True
            return control

        def _saves(self, args: Any, step: int) -> bool:
            """Say whether to save behind this step, and whether to rest there: by the first process's folder and clock."""
            rests, due = first_says(is_to_rest(job.work_dir), self._due(args, step), device=args.device)
            self.rests = bool(rests)
            return bool(rests or due)

        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if self.rests and job.log is not None and state.is_world_process_zero:
                job.log(doing=f"rests behind step {state.global_step}, which is kept")
            while self.rests and is_to_rest(job.work_dir):
                time.sleep(LOOK_S)
            self.rests = False

        def _due(self, args: Any, step: int) -> bool:
            if params.save_steps:
                return step - self.saved_step >= params.save_steps
            return step % args.logging_steps == 0 and time.monotonic() - self.saved_at > CHECKPOINT_S

        def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
            if args.world_size > 1:
                torch.distributed.barrier()  # every worker has written its part
            if state.is_world_process_zero:
                mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            self.saved_at, self.saved_step = time.monotonic(), state.global_step

        def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            if not math.isfinite(value := (logs or {}).get("eval_loss", 0.0)):
                raise no_number("the loss on `eval_input` is", value, state.global_step, _last_rate(state))
            now = time.monotonic()
            last = state.global_step >= state.max_steps
            if job.log is None or not state.is_world_process_zero or (now - self.told_at < 0.2 and not last):
                return
            told = {name: logs[name] for name in ("loss", "eval_loss", "reward", "kl") if logs and _finite(logs.get(name))}
            if told:
                self.told_at = now
                job.log(done=state.global_step, total=state.max_steps, **told)

    return Watcher()


def _last_rate(state: Any) -> float:
    return next((float(point["learning_rate"]) for point in reversed(state.log_history) if "learning_rate" in point), math.nan)


class Quiet(Finite):
    """Mixed into the libraries' trainers: they report to the trackers that were named alone, and write no model card.

    Nor do they count floating point operations, for which they would look through the whole model at each batch.
    """

    def floating_point_ops(self, _inputs: Any) -> int:
        """Return 0: nobody is told of them."""
        return 0

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: the artifact's record says how the model came to be."""
