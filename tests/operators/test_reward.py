"""`reward`: a model that scores, centred and measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource, Request
from caiflow.engine.llm.load import load_engine
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.training.models import load_plain
from caiflow.operators.measures.pictures import can_draw
from caiflow.operators.reward import RELIABILITY, RELIABILITY_PICTURE, Reward, RewardParams
from caiflow.operators.training.scoring import load_reward, sigmoid
from support.asking import ask
from support.small_models import held_out, job, preferences, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return small_model(tmp_path_factory.mktemp("model"))


def train(folder: Path, model: ModelSource, p: tuple[float, ...] = (1.0,), **fields: Any) -> Job:
    done = job(folder, {"rows": preferences(p), "held": held_out(preferences(p)[:10])}, base=model)
    settings = {"input": "rows", "model": "base", "learning_rate": 2e-3, "num_train_epochs": 4, **fields}
    Reward(RewardParams.model_validate(settings), StepContext()).train(done)
    return done


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lora": {"rank": 8}, "eval_input": "held"},
        {"center_rewards_coefficient": 0.01},
        {"train_sampling_strategy": "group_by_length"},
    ],
)
def test_it_tells_chosen_from_rejected_and_scores_are_centred(
    tmp_path: Path, model: ModelSource, fields: dict[str, Any]
) -> None:
    done = train(tmp_path, model, **fields)
    assert done.metrics["accuracy"] == 1.0
    assert done.metrics["margin"] > 0.5
    assert done.metrics["measured_on"] == ("eval_input" if "eval_input" in fields else "input")
    rows = held_out(preferences()[:10]) if "eval_input" in fields else preferences()
    judge = load_reward(ModelSource(path=str(done.out_dir), identity=""))
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (judge.score(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    assert sum(chosen + rejected) / (2 * len(rows)) == pytest.approx(0, abs=1e-4)
    assert sum(chosen) / len(rows) - sum(rejected) / len(rows) == pytest.approx(done.metrics["margin"], rel=1e-3)


@pytest.mark.soak
def test_soft_labels_are_learnt_as_they_are(tmp_path: Path, model: ModelSource) -> None:
    done = train(tmp_path, model, (0.8,), num_train_epochs=12)
    assert done.metrics["margin"] == pytest.approx(1.386, abs=0.3), "the log-odds of 0.8"
    assert done.metrics["ece"] < 0.06
    hard = train(tmp_path / "hard", model, (0.8,), num_train_epochs=12, labels="hard")
    assert hard.metrics["margin"] > done.metrics["margin"] + 1


def test_the_reliability_figure_s_data_lies_beside_the_model(tmp_path: Path, model: ModelSource) -> None:
    done = train(tmp_path, model, (0.9, 0.6))
    data = json.loads((done.out_dir / RELIABILITY).read_text())
    assert data["ece"] == done.metrics["ece"]
    assert sum(one["n"] for one in data["bins"]) == 2 * 36, "each pair counts in both orders"
    assert (done.out_dir / RELIABILITY_PICTURE).exists() == can_draw()


@pytest.mark.soak
def test_scores_can_be_left_as_they_are(tmp_path: Path, model: ModelSource) -> None:
    done = train(tmp_path, model, center=False)
    assert load_reward(ModelSource(path=str(done.out_dir), identity="")).mean == 0.0


def test_adapters_can_t_be_kept_apart() -> None:
    with pytest.raises(ValidationError, match="saved whole"):
        RewardParams.model_validate({"input": "rows", "model": "base", "lora": {}, "merge": False})


def test_a_reward_model_is_no_language_model(tmp_path: Path, model: ModelSource) -> None:
    scores = train(tmp_path, model, max_steps=1).out_dir
    source = ModelSource(path=str(scores), identity="", engine="transformers")
    with pytest.raises(EngineError, match=r"is a reward model .*, which writes no text"):
        load_plain(source)
    (answer,) = ask(load_engine(source), [Request("To bake a cake,")])
    assert isinstance(answer, EngineError)
    assert "is a reward model or classifier (LlamaForSequenceClassification), which writes no text" in answer.message


def test_a_reward_model_grades_by_its_centred_score(tmp_path: Path, model: ModelSource) -> None:
    source = ModelSource(path=str(train(tmp_path, model).out_dir), identity="")
    prompts = [[{"role": "user", "content": f"How do I bake a {thing}?"}] for thing in ("cake", "wall", "very tall tree")]
    replies = ["To bake it, find it.", "No, I will not bake.", "No."]
    talks = [(*prompt, {"role": "assistant", "content": reply}) for prompt, reply in zip(prompts, replies, strict=True)]
    answers = ask(load_engine(source), [Request(talk, classify=True) for talk in talks])
    found = [math.exp(answer.logprobs["LABEL_0"]) for answer in answers]
    assert found == pytest.approx([sigmoid(score) for score in load_reward(source).score(prompts, replies)], abs=1e-5)
