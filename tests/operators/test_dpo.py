"""`dpo`: preferences of all kinds move the model, and certain labels move it as the library would."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.rows.columns import Columns
from caiflow.operators.dpo import OF_BATCHES, Dpo, DpoParams, Loss
from caiflow.operators.training.pair_losses import PAIR_LOSSES
from support.small_models import held_out, job, preferences, small_model
from support.trainings import train as train_by


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return small_model(tmp_path_factory.mktemp("other"), seed=1)


def train(folder: Path, model: ModelSource, p: tuple[float, ...] = (1.0,), **fields: Any) -> Job:
    models = {"base": model, "other": fields.pop("_other", model)}
    done = job(folder, {"rows": preferences(p), "held": held_out(preferences(p)[:5])}, **models)
    settings = {"input": "rows", "model": "base", "learning_rate": 2e-3, "num_train_epochs": 2, **fields}
    Dpo(DpoParams.model_validate(settings), StepContext()).train(done)
    return done


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"labels": "hard"},
        {"lora": {"rank": 4}, "eval_input": "held"},
        {"reference_free": True, "labels": "hard", "num_train_epochs": 6},
        {"loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0, 0.1]},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"sync_ref_model": True, "ref_model_sync_steps": 2},
        {"reference": "other"},
        {"train_sampling_strategy": "group_by_length", "eval_input": "held"},
    ],
)
def test_chosen_replies_gain_on_rejected_ones(
    tmp_path: Path, model: ModelSource, other: ModelSource, fields: dict[str, Any]
) -> None:
    done = train(tmp_path, model, (1.0, 0.8), _other=other, **fields)
    assert done.metrics["rewards_margins"] > 0
    assert done.metrics["rewards_accuracies"] == 1.0
    assert (done.out_dir / "model.safetensors").exists()
    assert ("eval_loss" in done.metrics) == ("eval_input" in fields)


def test_the_reference_asked_beforehand_gives_the_same_run(tmp_path: Path, model: ModelSource) -> None:
    along = train(tmp_path / "along", model, (0.9, 0.7))
    before = train(tmp_path / "before", model, (0.9, 0.7), precompute_ref_log_probs=True)
    assert before.metrics["train_loss"] == pytest.approx(along.metrics["train_loss"], rel=1e-5)
    assert before.metrics["rewards_margins"] == pytest.approx(along.metrics["rewards_margins"], rel=1e-4)


@pytest.mark.soak
def test_labels_reach_as_far_as_they_say(tmp_path: Path, model: ModelSource) -> None:
    sure, even, against = (
        train(tmp_path / str(p), model, (p,), num_train_epochs=6).metrics["rewards_margins"] for p in (1.0, 0.5, 0.1)
    )
    assert sure > 1
    assert abs(even) < 0.5
    assert against < -0.5


def test_smoothing_is_a_softer_label(tmp_path: Path, model: ModelSource) -> None:
    smooth = train(tmp_path / "smooth", model, label_smoothing=0.2)
    soft = train(tmp_path / "soft", model, (0.8,))
    assert smooth.metrics["train_loss"] == pytest.approx(soft.metrics["train_loss"], rel=1e-6)


def test_losses_over_whole_batches_take_certain_labels_only(tmp_path: Path, model: ModelSource) -> None:
    with pytest.raises(StepError, match="aot can't weigh single pairs"):
        train(tmp_path / "soft", model, (0.8,), loss_type="aot")
    assert train(tmp_path / "hard", model, (0.8,), loss_type="aot", labels="hard").metrics["rewards_margins"] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0]}, "1 values for 2 losses"),
        ({"loss_type": "exo_pair"}, "above 0"),
        ({"reference_free": True, "reference": "other"}, "uses no reference"),
        ({"sync_ref_model": True, "lora": {}}, "leave `lora`"),
        ({"loss_type": "sigmoidal"}, "Input should be"),
        ({"loss_type": ["sigmoid", "sft"], "label_smoothing": 0.1}, "can't weigh single pairs"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DpoParams.model_validate({"input": "rows", "model": "base", **fields})


@pytest.mark.parametrize("loss", ["sft", "aot", ("sigmoid", "sft")])
def test_losses_over_whole_batches_are_refused_where_the_columns_tell_of_labels(loss: Any) -> None:
    pairs = Columns({"prompt": "messages", "chosen": "text", "rejected": "text"})
    for more, columns, found in (
        ({}, pairs.plus({"p_chosen": "number"}), [("loss_type",)]),
        ({"labels": "hard"}, pairs.plus({"p_chosen": "number"}), []),
        ({}, pairs, []),
    ):
        params = DpoParams.model_validate({"input": "rows", "model": "base", "loss_type": loss, **more})
        assert [path for path, *_ in Dpo(params, StepContext()).check_columns({"rows": columns})] == found


def test_losses_are_of_pairs_or_of_batches() -> None:
    assert set(get_args(Loss)) - PAIR_LOSSES.keys() == OF_BATCHES


@pytest.mark.parametrize("merge", [True, False])
def test_a_kept_adapter_can_be_the_reference(tmp_path: Path, model: ModelSource, merge: bool) -> None:
    kept = train_by(tmp_path / "kept", "sft", model, lora={"rank": 4}, merge=False)
    source = ModelSource(path=model.path, adapter=str(kept.out_dir), identity="kept")
    done = train(tmp_path / "dpo", model, (1.0,), _other=source, reference="other", lora={"rank": 4}, merge=merge)
    assert done.metrics["rewards_margins"] > 0
