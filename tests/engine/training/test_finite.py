"""A training that comes to no finite number fails there, names step and rate, and saves nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.training.loop import HISTORY, write_history
from support.tiers import few_at_once
from support.trainings import TRAINERS, reward_model, train

WILD = {"optim": "sgd", "learning_rate": 1e30, "max_grad_norm": 0, "lr_scheduler_type": "constant"}
"""The first step leaves weights that are finite but far too great."""
BEYOND_FLOAT32 = {"learning_rate": 1e37, "weight_decay": 1e3, "lr_scheduler_type": "constant"}
"""Loss and gradients are finite, what comes of the weights is not: they alone tell."""


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, model: ModelSource) -> ModelSource:
    return reward_model(tmp_path_factory.mktemp("judge"), model)


def fails(folder: Path, trainer: str, model: ModelSource, judge: ModelSource, **fields: Any) -> str:
    with pytest.raises(StepError) as failure:
        train(folder, trainer, model, judge, **fields)
    assert not list((folder / "out").glob("*.safetensors"))
    return str(failure.value)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize("trainer", few_at_once(TRAINERS, "sft", "ppo"))
def test_it_ends_at_the_first_loss_or_gradient_that_isn_t_finite(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str, lora: Any
) -> None:
    said = fails(tmp_path, trainer, model, judge, **WILD, lora=lora, max_steps=8)
    assert "learning rate 1e+30: " in said
    assert "not finite, got " in said
    assert "training step 1," not in said
    assert "lower `learning_rate`" in said


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize("trainer", few_at_once(TRAINERS, "sft", "ppo"))
def test_it_ends_at_the_first_weight_that_isn_t_finite(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str, lora: Any
) -> None:
    said = fails(tmp_path, trainer, model, judge, **BEYOND_FLOAT32, lora=lora, max_steps=1)
    assert said.startswith("training step 1, learning rate 1e+37: a weight is not finite, got ")


def test_a_held_out_loss_that_isn_t_finite_ends_it(tmp_path: Path, model: ModelSource, judge: ModelSource) -> None:
    said = fails(tmp_path, "sft", model, judge, **{**WILD, "learning_rate": 1e16}, max_steps=1, eval_input="held")
    assert "training step 1, learning rate 1e+16: the loss on `eval_input` is not finite" in said


@pytest.mark.parametrize("trainer", few_at_once(("sft", "dpo", "reward"), "sft"))
def test_weights_asked_for_in_float16_are_trained_in_float32(tmp_path: Path, model: ModelSource, trainer: str) -> None:
    half = train(tmp_path / "half", trainer, model._replace(dtype="float16"))
    whole = train(tmp_path / "whole", trainer, model)
    assert half.metrics["train_loss"] == whole.metrics["train_loss"]
    assert json.loads((half.out_dir / "config.json").read_text())["dtype"] == "float32", "as the model that it was"


def test_the_curve_has_no_number_that_json_hasn_t(tmp_path: Path) -> None:
    write_history(tmp_path, [{"step": 1, "loss": 2.0, "reward_std": math.nan, "kl": math.inf}])

    def refuse(name: str) -> None:
        raise AssertionError(f"a bare {name}")

    (point,) = [json.loads(line, parse_constant=refuse) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert point == {"step": 1, "loss": 2.0, "reward_std": None, "kl": None}
