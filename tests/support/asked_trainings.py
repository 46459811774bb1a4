"""Trainings whose rewards are asked of a model, carried out as a run does it; the model is a function of what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import StepContext
from caiflow.engine.run.units import StepResult, TrainUnit
from caiflow.operators.rl import Rl
from caiflow.operators.training.params import RlParams
from support.cutting_off import cut_off
from support.runs_without_ray import AskedLink
from support.small_constitution import small_constitution
from support.small_models import preferences, saved

FIELDS: Mapping[str, Any] = {
    "input": "rows", "model": "base", "learning_rate": 1e-2, "max_completion_length": 8, "max_length": 96, "logging_steps": 1,
    "per_device_train_batch_size": 16,
}  # fmt: skip


def carried_out(folder: Path, model: ModelSource, link: AskedLink, report: Any = lambda _: None, **fields: Any) -> StepResult:
    """Train as a run's worker does; a folder that was used before goes on where it stopped, with its ledger."""
    rows = folder / "rows"
    if not rows.exists():
        saved(rows, [{"uid": row["uid"], "prompt": row["prompt"]} for row in preferences()])
    operator = Rl(RlParams.model_validate({**FIELDS, **fields}), StepContext(seed=5, constitution=small_constitution()))
    places = [folder / name for name in ("staged", "work", "ledger")]
    for place in places:
        place.mkdir(exist_ok=True)
    models = {"base": model, "m": ModelSource(path="", identity="judge")}
    unit = TrainUnit("rl", operator, {"rows": rows}, models, places[0], places[1], {"m": [link]}, places[2])
    return unit.run(report)["rl"]


def cut_and_resumed(folder: Path, model: ModelSource, link: AskedLink, **fields: Any) -> StepResult:
    """Train until the first checkpoint, end there, and train to the end; `fields` have `save_steps`."""
    folder.mkdir(exist_ok=True)
    cut_off(folder / "work", lambda stop: carried_out(folder, model, link, stop, **fields))
    return carried_out(folder, model, link, **fields)
