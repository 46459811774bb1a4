"""`rl`: each algorithm raises the reward that it is given, and can be resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.training.models import load_plain
from caiflow.operators.reward import Reward, RewardParams
from caiflow.operators.rl import Rl
from caiflow.operators.training.params import RlParams
from support.cutting_off import cut_off
from support.small_models import held_out, job, preferences, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, model: ModelSource) -> ModelSource:
    done = job(tmp_path_factory.mktemp("judge"), {"rows": preferences()}, base=model)
    params = {"input": "rows", "model": "base", "learning_rate": 2e-3, "num_train_epochs": 4}
    Reward(RewardParams.model_validate(params), StepContext()).train(done)
    return ModelSource(path=str(done.out_dir), identity="judge")


FIELDS: dict[str, Any] = {
    "input": "rows",
    "model": "base",
    "rewards": {"judge": 1.0},
    "learning_rate": 2e-3,
    "num_train_epochs": 3,
    "max_completion_length": 16,
    "max_length": 128,
    "beta": 0.01,
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": "grpo", "num_generations": 4},
    "rloo": {"algorithm": "rloo", "num_generations": 4},
    "ppo": {"algorithm": "ppo", "steps_per_generation": 2},
}
EACH = [pytest.param(name, marks=[pytest.mark.soak] if name == "rloo" else []) for name in ALGORITHMS]
"""RLOO goes GRPO's way but for its advantages."""


def train(folder: Path, model: ModelSource, judge: ModelSource, log: Any = None, **fields: Any) -> Job:
    rows = [{"uid": row["uid"], "prompt": row["prompt"]} for row in preferences()]
    done = job(folder, {"rows": rows, "held": held_out(rows[:8])}, base=model, judge=judge)
    done.log = log
    Rl(RlParams.model_validate({**FIELDS, **fields}), StepContext()).train(done)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, pytest.param({"rank": 8}, marks=pytest.mark.soak)])
@pytest.mark.parametrize("algorithm", EACH)
def test_the_reward_rises(tmp_path: Path, model: ModelSource, judge: ModelSource, algorithm: str, lora: Any) -> None:
    done = train(tmp_path, model, judge, lora=lora, **ALGORITHMS[algorithm])
    assert done.metrics["reward_end"] > done.metrics["reward_start"] + 0.1
    assert done.metrics["kl_end"] > done.metrics["kl_start"] >= -0.05
    assert {"length_end", "boilerplate_rate_end", "rewards_judge_mean", "rewards_length_mean"} <= set(done.metrics)
    names = set(load_plain(ModelSource(path=str(done.out_dir), identity="")).state_dict())
    assert names == set(load_plain(model).state_dict()), "no value head is left in the model"


@pytest.mark.soak
@pytest.mark.slow
def test_what_ppo_learns_does_not_hang_on_where_the_scores_have_their_zero(
    tmp_path: Path, model: ModelSource, judge: ModelSource
) -> None:
    shifted = tmp_path / "judge"
    shutil.copytree(judge.path, shifted)
    config = json.loads((shifted / "config.json").read_text())
    (shifted / "config.json").write_text(json.dumps({**config, "reward_mean": config["reward_mean"] - 20}))
    high = train(tmp_path / "high", model, ModelSource(path=str(shifted), identity="high"), **ALGORITHMS["ppo"]).metrics
    plain = train(tmp_path / "plain", model, judge, **ALGORITHMS["ppo"]).metrics
    assert high["reward_start"] == pytest.approx(plain["reward_start"] + 20, abs=0.02)
    assert high["reward_end"] == pytest.approx(plain["reward_end"] + 20, abs=0.1)
    assert plain["reward_end"] > plain["reward_start"] + 0.1


@pytest.mark.soak
@pytest.mark.slow
def test_long_replies_can_be_made_dear(tmp_path: Path, model: ModelSource, judge: ModelSource) -> None:
    fields = {**ALGORITHMS["rloo"], "rewards": {"judge": 0.0}, "length_penalty": 0.2, "length_free": 2, "num_train_epochs": 4}
    done = train(tmp_path, model, judge, **fields)
    assert done.metrics["length_end"] < done.metrics["length_start"] - 2


@pytest.mark.soak
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_that_was_cut_off_ends_as_an_undisturbed_one(
    tmp_path: Path, model: ModelSource, judge: ModelSource, algorithm: str
) -> None:
    fields = {**ALGORITHMS[algorithm], "save_steps": 3, "num_train_epochs": 2, "per_device_train_batch_size": 16}
    undisturbed = train(tmp_path / "undisturbed", model, judge, **fields)
    disturbed = tmp_path / "disturbed"
    cut_off(disturbed / "work", lambda stop: train(disturbed, model, judge, stop, logging_steps=1, **fields), checkpoints=2)
    resumed = train(disturbed, model, judge, **fields)
    history = [(done.out_dir / "_history.jsonl").read_text() for done in (undisturbed, resumed)]
    assert history[0] == history[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"algorithm": "ppo", "per_device_train_batch_size": 1},
        {"algorithm": "grpo", "num_generations": 6, "per_device_train_batch_size": 6},
    ],
)
def test_held_out_prompts_are_answered_and_scored(
    tmp_path: Path, model: ModelSource, judge: ModelSource, fields: dict[str, Any]
) -> None:
    more = {"max_steps": 2, "eval_input": "held", "train_sampling_strategy": "group_by_length"}
    done = train(tmp_path, model, judge, **more, **fields)
    assert "eval_reward" in done.metrics


@pytest.mark.parametrize(
    ("fields", "drawn", "held"),
    [
        ({"algorithm": "ppo", "per_device_train_batch_size": 1}, 1, 8),
        ({"algorithm": "ppo", "per_device_train_batch_size": 3, "steps_per_generation": 3}, 9, 8),
        ({"algorithm": "grpo", "num_generations": 16, "steps_per_generation": 2}, 16, 16),
        ({"algorithm": "rloo", "num_generations": 6, "per_device_train_batch_size": 12}, 12, 6),
    ],
)
def test_any_batch_that_holds_whole_groups_is_one_for_the_library(
    tmp_path: Path, model: ModelSource, fields: dict[str, Any], drawn: int, held: int
) -> None:
    params = RlParams.model_validate({**FIELDS, "eval_input": "held", **fields})
    config = Rl(params, StepContext()).configured(job(tmp_path, {}), model, 8)
    assert (config.generation_batch_size, config.per_device_eval_batch_size) == (drawn, held)
    assert config.num_generations == config.num_generations_eval == params.generations
    assert config.steps_per_generation == params.batches


def test_prompts_without_room_for_a_reply_are_named(tmp_path: Path, model: ModelSource, judge: ModelSource) -> None:
    with pytest.raises(StepError, match="no prompts are left"):
        train(tmp_path, model, judge, max_length=20, **ALGORITHMS["ppo"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithm": "grpo", "lam": 0.9}, "`lam` is for ppo"),
        ({"algorithm": "ppo", "scale_rewards": "none"}, "`scale_rewards` is for grpo"),
        ({"algorithm": "rloo", "use_vllm": True}, "`use_vllm` is for grpo"),
        ({"algorithm": "rloo", "num_generations": 1}, "2 or more"),
        ({"algorithm": "grpo", "num_generations": 3}, "must be a multiple"),
        ({"algorithm": "ppo", "max_length": 16}, "no room"),
        ({"rewards": {}}, "at least 1"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RlParams.model_validate({**FIELDS, **fields})


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, None),
        ({"resources": {"workers": 2}}, ("resources", "workers")),
        ({"lora": {"quantization": "4bit"}}, ("use_vllm",)),
    ],
)
def test_what_vllm_can_t_draw_beside_is_refused_with_its_place(fields: dict[str, Any], place: tuple[str, ...] | None) -> None:
    params = {**FIELDS, **ALGORITHMS["grpo"], "use_vllm": True, **fields}
    found = list(Rl(RlParams.model_validate(params), StepContext()).check())
    assert [one.path for one in found if "vLLM" in one.message or "vllm" in one.message] == ([place] if place else [])


def test_replies_of_vllm_are_other_ones_however_much_memory_it_has() -> None:
    def identity(**fields: Any) -> Any:
        return Rl(RlParams.model_validate({**FIELDS, **ALGORITHMS["grpo"], **fields}), StepContext()).identity()

    assert identity(use_vllm=True) == identity(use_vllm=True, vllm_gpu_memory_utilization=0.5)
    assert identity() == identity(use_vllm=False) != identity(use_vllm=True)
