"""The saved model is the trained one: every trainer, whole, folded in and kept apart; and where it isn't, nothing is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.store.checkpoints import LEARNT
from caiflow.engine.training.models import load_plain, load_tokenizer
from caiflow.engine.training.saving import LossOn, Trained, save
from caiflow.operators.sft import SftParams
from support.small_models import SHAPE, job, small_model
from support.tiers import few_at_once
from support.trainings import TRAINERS, reward_model, train

WAYS = {"whole": {}, "folded": {"lora": {"rank": 4}}, "apart": {"lora": {"rank": 4}, "merge": False}}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, model: ModelSource) -> ModelSource:
    return reward_model(tmp_path_factory.mktemp("judge"), model)


@pytest.mark.parametrize(
    ("trainer", "way"),
    few_at_once(
        ((trainer, way) for trainer in TRAINERS for way in WAYS if (trainer, way) != ("reward", "apart")),
        *(("sft", way) for way in WAYS),
        ("dpo", "apart"),
        ("reward", "whole"),
        ("grpo", "folded"),
    ),
)
def test_both_losses_are_told_and_are_one(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str, way: str
) -> None:
    done = train(tmp_path, trainer, model, judge, **WAYS[way])
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=1e-4)


def soaked(case: Any, *, fast: bool, rare: bool = False) -> Any:
    return pytest.param(*case, marks=[] if fast else [pytest.mark.campaign if rare else pytest.mark.soak])


TARGETS = (
    ["embed_tokens"], ["embed_tokens", "v_proj"], ".*(q_proj|embed_tokens)",
    ["lm_head"], "lm_head", ["embed_tokens", "lm_head"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "merge"),
    [soaked((targets, merge), fast=targets == ["embed_tokens"]) for targets in TARGETS for merge in (True, False)],
)
def test_adapters_on_tied_embeddings_are_folded_in_as_they_were_trained(
    tmp_path: Path, model: ModelSource, targets: Any, merge: bool
) -> None:
    done = train(tmp_path, "sft", model, lora={"rank": 4, "targets": targets}, merge=merge, learning_rate=5e-2)
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=1e-3)
    again = train(
        tmp_path / "again",
        "sft",
        ModelSource(path=str(done.out_dir), tokenizer=model.path, identity=""),
        learning_rate=0,
        max_steps=1,
    )
    assert again.metrics["trained_loss"] == pytest.approx(done.metrics["trained_loss"], abs=1e-3)


def test_so_they_are_in_a_reward_model(tmp_path: Path, model: ModelSource) -> None:
    lora = {"rank": 4, "targets": ["embed_tokens", "v_proj"]}
    done = train(tmp_path, "reward", model, lora=lora, learning_rate=1e-2)
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=1e-3)


def test_a_head_beside_adapters_learns_in_float32_whatever_the_model_is_in(tmp_path: Path, model: ModelSource) -> None:
    done = train(tmp_path, "reward", model._replace(dtype="bfloat16"), lora={"rank": 4}, max_steps=2)
    learnt = load_file(done.work_dir / LEARNT / "adapter_model.safetensors")
    assert any("score" in name for name in learnt)
    assert {str(weights.dtype) for weights in learnt.values()} == {"torch.float32"}


@pytest.mark.parametrize(
    ("trainer", "targets", "merge"),
    [
        soaked(
            (trainer, targets, merge),
            fast=trainer == "dpo" and targets == ["lm_head"] and not merge,
            rare=trainer != "sft" and (targets == ["lm_head"] or merge),
        )
        for trainer in TRAINERS
        if trainer != "reward"
        for targets in (["lm_head"], ["embed_tokens", "lm_head"])
        for merge in (True, False)
    ],
)
def test_adapters_on_the_head_learn_and_are_saved(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str, targets: list[str], merge: bool
) -> None:
    lora = {"rank": 4, "targets": targets}
    done = train(tmp_path, trainer, model, judge, lora=lora, learning_rate=1e-2, merge=merge)
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=1e-3)
    assert done.metrics["grad_norm"] > 0
    if not merge:
        learnt = load_file(done.out_dir / "adapter_model.safetensors")
        assert all(weight.abs().max() > 1e-4 for name, weight in learnt.items() if "lora_B" in name), "B begins at 0"
    elif len(targets) == 1:
        now, before = (load_plain(ModelSource(path=path, identity="")) for path in (str(done.out_dir), model.path))
        assert now.lm_head.weight is not now.get_input_embeddings().weight
        assert now.get_input_embeddings().weight.equal(before.get_input_embeddings().weight)
        assert not now.lm_head.weight.equal(before.lm_head.weight)


def test_embeddings_that_aren_t_tied_stay_as_they_are(tmp_path: Path) -> None:
    parted = small_model(tmp_path / "model", shape=SHAPE.model_copy(update={"tie_word_embeddings": False}))
    done = train(tmp_path, "sft", parted, lora={"rank": 4, "targets": ["embed_tokens"]})
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=1e-4)


def test_a_model_that_isn_t_saved_as_it_was_trained_is_refused(tmp_path: Path, model: ModelSource) -> None:
    trained, tokenizer = load_plain(model), load_tokenizer(model)
    trained.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 3)  # a part that no file holds
    rows = [(list(range(5, 25)), list(range(5, 25)))]
    params = SftParams.model_validate({"input": "rows", "model": "base"})
    with pytest.raises(StepError, match=r"isn't the trained one: loss \d.* at the end of training, \d.* as loaded"):
        save(Trained(trained, tokenizer, model, LossOn(rows, 0, 8)), params, job(tmp_path, {}))


@pytest.mark.parametrize("trainer", few_at_once(("sft", "dpo", "grpo"), "sft"))
def test_a_kept_adapter_names_the_revision_that_it_was_trained_over(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str
) -> None:
    done = train(tmp_path, trainer, model._replace(revision="v1"), judge, lora={"rank": 4}, merge=False)
    config = json.loads((done.out_dir / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (model.path, "v1")
