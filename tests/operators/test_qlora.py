"""Adapters over weights in 4 and 8 bits: every trainer, merged and kept, resumed; what is saved is what was trained."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import load_model
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.training.models import load_plain
from caiflow.operators.sft import Sft, SftParams
from support.cutting_off import cut_off
from support.small_models import EVEN, small_model
from support.trainings import TRAINERS, reward_model, train

pytestmark = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")

BITS = ("4bit", "8bit")
KEPT_APART = [trainer for trainer in TRAINERS if trainer != "reward"]
EACH_ONCE = list(zip(TRAINERS, cycle(BITS), strict=False))


def cases(trainers: Iterable[str], always: Collection[tuple[str, str]]) -> list[Any]:
    """Return each trainer in 4 and in 8 bits: the long tests have each in one of them, those with all their places both."""

    def marks(case: tuple[str, str]) -> list[Any]:
        return [] if case in always else [pytest.mark.soak if case in EACH_ONCE else pytest.mark.campaign]

    return [pytest.param(*case, marks=marks(case)) for case in product(trainers, BITS)]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, model: ModelSource) -> ModelSource:
    return reward_model(tmp_path_factory.mktemp("judge"), model)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A model all of whose widths 32 divides, as the kernels for bfloat16 on CPUs want it."""
    return small_model(tmp_path_factory.mktemp("even"), shape=EVEN)


def lora(bits: str) -> dict[str, Any]:
    return {"rank": 4, "quantization": bits}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


@pytest.mark.parametrize(("trainer", "bits"), cases(TRAINERS, {("sft", "8bit"), ("dpo", "4bit")}))
def test_what_is_merged_is_what_was_trained(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str, bits: str
) -> None:
    done = train(tmp_path, trainer, model, judge, lora=lora(bits))
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=0.01)
    config = json.loads((done.out_dir / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert config.get("reward_mean", 0) == done.metrics.get("mean_reward", 0)
    assert not list(done.out_dir.glob("adapter*"))
    before = weights(Path(model.path))
    assert set(weights(done.out_dir)) - {"score.weight"} == set(before)


def learnt(done: Job, model: ModelSource) -> torch.Tensor:
    """Return how many singular values of the change in one layer aren't 0."""
    name = "model.layers.0.self_attn.q_proj.weight"
    change = weights(done.out_dir)[name] - weights(Path(model.path))[name]
    return torch.linalg.matrix_rank(change, atol=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("bits", ["4bit", pytest.param("8bit", marks=pytest.mark.soak)])
def test_adapters_are_folded_into_the_original_weights_by_choice(tmp_path: Path, model: ModelSource, bits: str) -> None:
    rounded = train(tmp_path / "rounded", "sft", model, lora=lora(bits))
    original = train(tmp_path / "original", "sft", model, lora=lora(bits), merge="original")
    assert learnt(original, model) == 4
    assert learnt(rounded, model) > 4, "rounding touches all directions"
    gaps = [abs(done.metrics["saved_loss"] - done.metrics["trained_loss"]) for done in (rounded, original)]
    assert gaps[0] < gaps[1]
    assert original.metrics["trained_loss"] == rounded.metrics["trained_loss"]


def test_a_reward_model_in_the_original_weights_keeps_its_mean(tmp_path: Path, model: ModelSource) -> None:
    done = train(tmp_path, "reward", model, lora=lora("4bit"), merge="original")
    assert json.loads((done.out_dir / "config.json").read_text())["reward_mean"] == done.metrics["mean_reward"]


@pytest.mark.parametrize(("trainer", "bits"), cases(KEPT_APART, {("sft", "4bit"), ("ppo", "8bit")}))
def test_adapters_can_be_kept_apart(tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str, bits: str) -> None:
    done = train(tmp_path, trainer, model, judge, lora=lora(bits), merge=False)
    assert not (done.out_dir / "model.safetensors").exists()
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=0.1)
    network = load_model(ModelSource(path=model.path, adapter=str(done.out_dir), identity=""))
    assert {name for name, _ in network.named_parameters()} == {name for name, _ in load_plain(model).named_parameters()}


@pytest.mark.soak
@pytest.mark.parametrize(("trainer", "bits"), EACH_ONCE)
def test_a_run_that_was_cut_off_ends_as_an_undisturbed_one(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str, bits: str
) -> None:
    fields = {"lora": lora(bits), "save_steps": 2, "logging_steps": 1}
    undisturbed = train(tmp_path / "undisturbed", trainer, model, judge, **fields)
    disturbed = tmp_path / "disturbed"
    cut_off(disturbed / "work", lambda stop: train(disturbed, trainer, model, judge, stop, **fields))
    resumed = train(disturbed, trainer, model, judge, **fields)
    history = [(done.out_dir / "_history.jsonl").read_text() for done in (undisturbed, resumed)]
    assert history[0] == history[1]
    ours, theirs = (weights(done.out_dir) for done in (resumed, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from caiflow.engine.llm.base import ModelSource
from support.trainings import train
model, judge = (ModelSource(path=path, identity=path) for path in sys.argv[4:6])
train(Path(sys.argv[2]), sys.argv[3], model, judge, lora={"rank": 4, "quantization": "4bit"}, save_steps=2, logging_steps=1)
"""


@pytest.mark.soak
@pytest.mark.kill
@pytest.mark.parametrize("trainer", [*(pytest.param(name, marks=pytest.mark.campaign) for name in ("sft", "dpo")), "ppo"])
def test_a_run_that_was_killed_ends_as_an_undisturbed_one(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str
) -> None:
    fields = {"lora": lora("4bit"), "save_steps": 2, "logging_steps": 1}
    undisturbed = train(tmp_path / "undisturbed", trainer, model, judge, **fields)
    disturbed = tmp_path / "disturbed"
    arguments = [str(Path(__file__).parents[1]), str(disturbed), trainer, model.path, judge.path]
    child = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
    while not list(disturbed.glob("work/checkpoints/*/complete")):
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (disturbed / "out" / "model.safetensors").exists()
    resumed = train(disturbed, trainer, model, judge, **fields)
    history = [(done.out_dir / "_history.jsonl").read_text() for done in (undisturbed, resumed)]
    assert history[0] == history[1]
    ours, theirs = (weights(done.out_dir) for done in (resumed, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.soak
@pytest.mark.parametrize("bits", BITS)
def test_an_evaluation_on_the_way_changes_nothing(tmp_path: Path, even: ModelSource, bits: str) -> None:
    alone = train(tmp_path / "alone", "sft", even, lora=lora(bits))
    measured = train(
        tmp_path / "measured", "sft", even, lora=lora(bits), eval_input="held", eval_strategy="steps", eval_steps=2
    )
    assert measured.metrics["train_loss"] == alone.metrics["train_loss"]
    assert measured.metrics["final_loss"] == alone.metrics["final_loss"]


@pytest.mark.soak
@pytest.mark.parametrize("bits", BITS)
def test_it_computes_in_bfloat16_too(tmp_path: Path, even: ModelSource, bits: str) -> None:
    done = train(tmp_path, "sft", even._replace(dtype="bfloat16"), lora=lora(bits), bf16=True, eval_input="held")
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=0.01)


@pytest.mark.soak
def test_two_workers_hold_each_a_copy(tmp_path: Path, model: ModelSource, cluster: Cluster) -> None:
    done = train(tmp_path, "sft", model, lora=lora("4bit"), resources={"workers": 2}, cluster=cluster)
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=0.01)


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, model: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # how Python marks a module that can't be imported
    with pytest.raises(StepError, match="4bit needs the bitsandbytes library; pip install 'bitsandbytes"):
        train(tmp_path, "sft", model, lora=lora("4bit"))


def test_original_weights_are_named_only_where_others_were_trained_over() -> None:
    with pytest.raises(ValidationError, match="without which all weights are"):
        SftParams.model_validate({"input": "rows", "model": "base", "lora": {}, "merge": "original"})


def test_results_of_earlier_ways_to_train_over_rounded_weights_are_not_taken_for_these() -> None:
    def identity(**more: Any) -> Any:
        return Sft(SftParams.model_validate({"input": "rows", "model": "base", **more}), StepContext()).identity()

    assert identity(lora={}) == {}
    assert identity(lora={"quantization": "4bit"}) == {"quantization": 2}
