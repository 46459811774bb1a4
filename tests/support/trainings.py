"""The six trainers with settings under which each ends in seconds and learns, for tests that go through all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.operators.dpo import Dpo, DpoParams
from caiflow.operators.reward import Reward, RewardParams
from caiflow.operators.rl import Rl
from caiflow.operators.sft import Sft, SftParams
from caiflow.operators.training.params import RlParams
from support.side_by_side import train_together
from support.small_models import held_out, job, lessons, preferences

_RL = {"rewards": {"judge": 1.0}, "max_completion_length": 8, "max_length": 96, "max_steps": 6}
TRAINERS: Mapping[str, tuple[Any, Any, Mapping[str, Any]]] = {
    "sft": (Sft, SftParams, {"num_train_epochs": 2}),
    "dpo": (Dpo, DpoParams, {"num_train_epochs": 2}),
    "reward": (Reward, RewardParams, {"num_train_epochs": 2}),
    "grpo": (Rl, RlParams, {**_RL, "algorithm": "grpo", "num_generations": 4}),
    "rloo": (Rl, RlParams, {**_RL, "algorithm": "rloo", "num_generations": 4}),
    "ppo": (Rl, RlParams, {**_RL, "algorithm": "ppo", "num_iterations": 2}),
}
"""By name: operator, parameters, and fields beyond `input` and `model`."""


def train(
    folder: Path, trainer: str, model: ModelSource, judge: ModelSource | None = None, log: Any = None, **more: Any
) -> Job:
    """Train `model` by one of the trainers; a folder used before goes on where it stopped.

    By several workers where a `cluster` is among `more`, which are the step's fields.
    """
    cluster = more.pop("cluster", None)
    kind, params_type, fields = TRAINERS[trainer]
    rows = lessons() if trainer == "sft" else preferences((1.0, 0.8))
    done = job(folder, {"rows": rows, "held": held_out(rows[:8])}, base=model, **({"judge": judge} if judge else {}))
    done.log = log
    settings = {"input": "rows", "model": "base", "learning_rate": 5e-3, **fields, **more}
    operator = kind(params_type.model_validate(settings), StepContext())
    if cluster is None:
        operator.train(done)
    else:
        wanted = operator.params.resources
        train_together(cluster, operator, done, Room(wanted.num_gpus or 0.0, processes=wanted.workers))
    return done


def reward_model(folder: Path, model: ModelSource) -> ModelSource:
    """Train a reward model on the preferences."""
    return ModelSource(path=str(train(folder, "reward", model).out_dir), identity="judge")
