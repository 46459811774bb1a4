"""A model divided among workers trains as one that isn't, is saved whole, and is refused where it can't be divided."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.operators.dpo import Dpo, DpoParams
from caiflow.operators.rl import Rl
from caiflow.operators.sft import Sft, SftParams
from caiflow.operators.training.params import RlParams
from support.sharded_on_cpu import DIVIDED, OnCpus
from support.side_by_side import train_together
from support.small_models import job, lessons, preferences, small_model
from support.trainings import TRAINERS

TWO: dict[str, Any] = {"fsdp": True, "resources": {"workers": 2}}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **more}}, "resources": {"workers": 2}}


LEARNT = {"learning_rate": 1e-3, "per_device_train_batch_size": 4}


def training(folder: Path, trainer: str, rows: Any, base: Any, **more: Any) -> tuple[Any, Job]:
    plain, params_type, fields = TRAINERS[trainer]
    given = {"input": "rows", "model": "base", **LEARNT, **fields, "num_train_epochs": 1, **more}
    return plain(params_type.model_validate(given), StepContext()), job(folder, {"rows": rows}, base=base)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_divided_model_learns_what_a_whole_one_learns_and_is_saved_whole(tmp_path: Path, cluster: Cluster) -> None:
    base, ways = small_model(tmp_path / "model"), [{}, {"lora": {"rank": 4}}]
    hold_together(cluster, tmp_path, base, [(trainer, way, TWO) for trainer in DIVIDED for way in ways])


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeed_divides_a_model_that_learns_and_goes_on_as_a_whole_one(tmp_path: Path, cluster: Cluster) -> None:
    base, adapters = small_model(tmp_path / "model"), {"lora": {"rank": 4}}
    ways: Any = [("sft", {"save_steps": 3}, zero(1)), ("sft", adapters, zero(2))]
    ways += [("sft", {"save_steps": 3}, zero(3)), ("dpo", {}, zero(3)), ("reward", adapters, zero(3))]
    saving = [place for place, (_, way, _) in enumerate(ways) if "save_steps" in way]
    first = hold_together(cluster, tmp_path, base, ways)
    for place in saving:
        checkpoints = tmp_path / f"divided-{place}/work/checkpoints"
        assert [folder.name for folder in checkpoints.glob("checkpoint-*")] == ["checkpoint-3"], "of four steps"
        shutil.rmtree(tmp_path / f"divided-{place}/out")
    again = hold_together(cluster, tmp_path, base, [ways[place] for place in saving], saving)
    assert [found["train_loss"] for found in again] == pytest.approx([first[place]["train_loss"] for place in saving])


def hold_together(cluster: Cluster, folder: Path, base: Any, ways: Any, places: Any = None) -> list[dict[str, Any]]:
    """Hold divided trainings to whole ones, and return their figures; in a folder that was used they go on."""
    from safetensors.torch import load_file

    divided, whole = [], []
    for place, (trainer, way, division) in zip(places or range(len(ways)), ways, strict=True):
        rows = lessons()[:32] if trainer == "sft" else preferences((1.0, 0.8))[:32]
        divided.append(training(folder / f"divided-{place}", trainer, rows, base, **way, **division))
        whole.append(training(folder / f"whole-{place}", trainer, rows, base, **way, per_device_train_batch_size=8))
    for operator, alone in whole:
        operator.train(alone)
    figures = OnCpus(divided).run(cluster, 2)
    for found, (operator, own), (_, alone) in zip(figures, divided, whole, strict=True):
        for name in ("steps", "first_loss", "final_loss"):
            assert found[name] == pytest.approx(alone.metrics[name], rel=1e-3, abs=1e-4), (operator.name, name)
        assert found["saved_loss"] == pytest.approx(found["trained_loss"], rel=1e-4)
        ours, theirs = (load_file(done.out_dir / "model.safetensors") for done in (own, alone))
        assert ours.keys() == theirs.keys()
        assert all((ours[name] - theirs[name]).abs().max() < 2e-3 for name in theirs)
    return figures


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
        ({**zero(2), "resources": {"workers": 1}}, ("deepspeed",), "among several workers, and there is one"),
        ({**zero(3), "lora": {"quantization": "8bit"}}, ("deepspeed",), "weights that are rounded"),
        ({**zero(3), "lora": {"targets": ["lm_head"]}}, ("deepspeed",), "no adapter on `lm_head`"),
        ({**zero(2), "fsdp": True}, ("deepspeed",), "two ways to divide a model"),
        ({**zero(2, offload_optimizer={"device": "cpu"}), "optim": "sgd"}, ("optim",), "DeepSpeed's own Adam"),
        (
            {**TWO, "gradient_checkpointing": True, "fsdp_config": {"activation_checkpointing": True}},
            ("fsdp_config", "activation_checkpointing"),
            "does what `gradient_checkpointing` does",
        ),
    ],
)
def test_what_can_t_be_divided_is_an_error_with_its_place(fields: dict[str, Any], path: tuple[str, ...], told: str) -> None:
    found = [(where, told in said) for where, said in findings(**fields) if "needs the library" not in said]
    assert found == [(path, True)]


def test_deepspeed_s_library_is_asked_for_where_it_is_missing() -> None:
    found = findings(**zero(3))
    assert found == ([] if find_spec("deepspeed") else [(("deepspeed",), "`deepspeed` needs the library of that name")])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"zero_optimization": {"stage": 4}}, "Input should be 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "`offload_param` is for stage 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "Input should be 'none' or 'cpu'"),
        ({"zero_optimization": {"stage": 3}, "train_batch_size": 16}, "Input should be 'auto'"),
        ({"zero_optimization": {"stage": 3}, "tensorboard": {"enabled": True}}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_deepspeed_or_a_spec_doesn_t_have_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SftParams.model_validate({"input": "rows", "model": "base", "deepspeed": settings})


def test_what_can_be_divided_is_no_error() -> None:
    assert findings(**TWO) == findings(**TWO, lora={"rank": 4}) == []
    assert findings(**TWO, fsdp_config={"activation_checkpointing": True}) == []


@pytest.mark.parametrize("field", ["precompute_ref_log_probs", "reference_free", "sync_ref_model"])
@pytest.mark.parametrize("way", ["fsdp", "deepspeed"])
def test_a_reference_of_another_kind_isn_t_divided(field: str, way: str) -> None:
    params = DpoParams.model_validate({"input": "rows", "model": "base", **(TWO if way == "fsdp" else zero(3)), field: True})
    found = [(finding.path, finding.message) for finding in Dpo(params, StepContext()).check()]
    assert found[-1] == ((way,), f"`{way}` divides no model with `{field}`")


def test_rl_isn_t_divided() -> None:
    params = RlParams.model_validate({"input": "rows", "model": "base", "rewards": {"judge": 1.0}, **TWO})
    assert [found.path for found in Rl(params, StepContext()).check()] == [("fsdp",)]


def test_a_divided_training_has_another_identity_than_one_that_isn_t() -> None:
    def identity(**fields: Any) -> Any:
        return Sft(SftParams.model_validate({"input": "rows", "model": "base", **fields}), StepContext()).identity()

    found = [identity(resources={"workers": 2}), identity(**TWO), identity(**zero(1)), identity(**zero(3))]
    found.append(identity(**zero(3, offload_optimizer={"device": "cpu"})))
    assert [found.index(one) for one in found] == list(range(5))
    assert identity(**zero(3, overlap_comm=True)) == identity(**zero(3))


@pytest.mark.slow
@pytest.mark.soak
def test_without_gpus_a_training_says_so_before_it_begins(tmp_path: Path, cluster: Cluster) -> None:
    params = SftParams.model_validate({"input": "rows", "model": "base", **TWO})
    asked = job(tmp_path / "run", {"rows": lessons()[:8]}, base=small_model(tmp_path / "model"))
    with pytest.raises(StepError, match="divides a model among GPUs, and there is none here"):
        train_together(cluster, Sft(params, StepContext()), replace(asked, log=None), Room(processes=2))
