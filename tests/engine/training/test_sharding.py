"""A model divided among workers trains as one that isn't, is saved whole, and is refused where it can't be divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.operators.dpo import Dpo, DpoParams
from caiflow.operators.rl import Rl, RlParams
from caiflow.operators.sft import Sft, SftParams
from support.sharded_on_cpu import DIVIDED, OnCpus
from support.small_models import job, lessons, preferences, small_model
from support.trainings import TRAINERS

TWO: dict[str, Any] = {"fsdp": True, "resources": {"workers": 2}}
LEARNT = {"learning_rate": 1e-3, "per_device_train_batch_size": 4}


def training(folder: Path, trainer: str, rows: Any, base: Any, **more: Any) -> tuple[Any, Job]:
    plain, params_type, fields = TRAINERS[trainer]
    given = {"input": "rows", "model": "base", **LEARNT, **fields, "num_train_epochs": 1, **more}
    return plain(params_type.model_validate(given), StepContext()), job(folder, {"rows": rows}, base=base)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_divided_model_learns_what_a_whole_one_learns_and_is_saved_whole(tmp_path: Path, cluster: Cluster) -> None:
    from safetensors.torch import load_file

    base, ways = small_model(tmp_path / "model"), [{}, {"lora": {"rank": 4}}]
    divided, whole = [], []
    for place, (trainer, way) in enumerate((trainer, way) for trainer in DIVIDED for way in ways):
        rows = lessons()[:32] if trainer == "sft" else preferences((1.0, 0.8))[:32]
        divided.append(training(tmp_path / f"divided-{place}", trainer, rows, base, **way, **TWO))
        whole.append(training(tmp_path / f"whole-{place}", trainer, rows, base, **way, per_device_train_batch_size=8))
    for operator, alone in whole:
        operator.train(alone)
    for found, (operator, own), (_, alone) in zip(OnCpus(divided).run(cluster, 2), divided, whole, strict=True):
        for name in ("steps", "first_loss", "final_loss"):
            assert found[name] == pytest.approx(alone.metrics[name], rel=1e-3, abs=1e-4), (operator.name, name)
        assert found["saved_loss"] == pytest.approx(found["trained_loss"], rel=1e-4)
        ours, theirs = (load_file(done.out_dir / "model.safetensors") for done in (own, alone))
        assert ours.keys() == theirs.keys()
        assert all((ours[name] - theirs[name]).abs().max() < 2e-3 for name in theirs)


def findings(**fields: Any) -> list[tuple[tuple[str | int, ...], str]]:
    params = SftParams.model_validate({"input": "rows", "model": "base", **fields})
    return [(found.path, found.message) for found in Sft(params, StepContext()).check()]


@pytest.mark.parametrize(
    ("fields", "path", "told"),
    [
        ({"fsdp": True}, ("fsdp",), "among several workers, and there is one"),
        ({"fsdp": True, "resources": {"workers": 2, "num_gpus": 0}}, ("fsdp",), "`resources` has `num_gpus: 0`"),
        ({"fsdp_config": {"cpu_offload": True}}, ("fsdp_config",), "that is off"),
        ({**TWO, "lora": {"targets": ["lm_head"]}}, ("fsdp",), "no adapter on `lm_head`"),
        ({**TWO, "lora": {"quantization": "4bit"}}, ("fsdp",), "weights that are rounded"),
        (
            {**TWO, "gradient_checkpointing": True, "fsdp_config": {"activation_checkpointing": True}},
            ("fsdp_config", "activation_checkpointing"),
            "does what `gradient_checkpointing` does",
        ),
    ],
)
def test_what_can_t_be_divided_is_an_error_with_its_place(fields: dict[str, Any], path: tuple[str, ...], told: str) -> None:
    assert [(where, told in said) for where, said in findings(**fields)] == [(path, True)]


def test_what_can_be_divided_is_no_error() -> None:
    assert findings(**TWO) == findings(**TWO, lora={"rank": 4}) == []
    assert findings(**TWO, fsdp_config={"activation_checkpointing": True}) == []


@pytest.mark.parametrize("field", ["precompute_ref_log_probs", "reference_free", "sync_ref_model"])
def test_a_reference_of_another_kind_isn_t_divided(field: str) -> None:
    params = DpoParams.model_validate({"input": "rows", "model": "base", **TWO, field: True})
    assert [(found.path, found.message) for found in Dpo(params, StepContext()).check()] == [
        (("fsdp",), f"`fsdp` divides no model with `{field}`")
    ]


def test_rl_isn_t_divided() -> None:
    params = RlParams.model_validate({"input": "rows", "model": "base", "rewards": {"judge": 1.0}, **TWO})
    assert [found.path for found in Rl(params, StepContext()).check()] == [("fsdp",)]


def test_a_divided_training_has_another_identity_than_one_that_isn_t() -> None:
    def identity(**fields: Any) -> Any:
        return Sft(SftParams.model_validate({"input": "rows", "model": "base", **fields}), StepContext()).identity()

    assert identity(**TWO) != identity(resources={"workers": 2})


@pytest.mark.slow
@pytest.mark.soak
def test_without_gpus_a_training_says_so_before_it_begins(tmp_path: Path) -> None:
    base = small_model(tmp_path / "model")
    params = SftParams.model_validate({"input": "rows", "model": "base", **TWO})
    with pytest.raises(StepError, match="divides a model among GPUs, and there is none here"):
        Sft(params, StepContext()).train(job(tmp_path / "run", {"rows": lessons()[:8]}, base=base))
