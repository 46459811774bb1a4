"""What a CPU can't show: kernels, copies and memory of a real GPU. `make test-gpu` runs these; elsewhere they skip.

Engines run in processes of their own, one after the other: a GPU's memory comes back whole only when its process ends.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.sampler import draw, probabilities
from caiflow.engine.machine import gpus
from caiflow.engine.plan.model_identity import resolve_model
from caiflow.engine.spec.grammar import ModelEntry
from support.agreement import assert_agree
from support.asking import ask, mixed_requests, scored_requests
from support.sharded_on_cpu import DIVIDED
from support.small_models import EVEN, small_model
from support.source_tree import ROOT
from support.trainings import TRAINERS, reward_model, train
from support.vllm_process import answered

GPUS = gpus()
pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU")]
needs_vllm = pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
ARGS = {"max_model_len": 512, "gpu_memory_utilization": 0.5}


def capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()


@pytest.fixture
def tiny_source() -> ModelSource:
    entry = ModelEntry(source="tiny", dtype="float32", engine="transformers", engine_args={"max_model_len": 512})
    return resolve_model("tiny", entry, Path())


@pytest.fixture
def on_vllm(tiny_source: ModelSource) -> ModelSource:
    return tiny_source._replace(engine="vllm", options={"engine_args": ARGS, "num_gpus": 1})


def test_a_row_may_draw_on_the_gpu_what_it_may_on_the_cpu_to_the_bit_in_any_batch() -> None:
    import torch

    torch.manual_seed(3)
    logits = (torch.randn(64, 50_000) * 3).bfloat16().float().cuda()
    filters: list[dict[str, Any]] = [{"top_k": 3}, {"top_k": 40, "top_p": 0.9}, {"top_p": 0.8}, {"min_p": 0.01}, {}]
    samplings = [Sampling(temperature=1.0, **filters[i % 5]) for i in range(64)]
    together = probabilities(logits, samplings)
    for i in range(64):
        assert torch.equal(together[i], probabilities(logits[i : i + 1], samplings[i : i + 1])[0]), samplings[i]
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = draw(logits, samplings, range(64), [0] * 64)  # raises where it waits for the device
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = draw(logits.cpu(), samplings, range(64), [0] * 64)
    assert (drawn.cpu() == on_cpu).float().mean() > 0.95, "the exponential rounds otherwise on a GPU, not more"


@needs_vllm
def test_vllm_answers_on_its_second_runner_what_transformers_answers(
    tmp_path: Path, on_vllm: ModelSource, tiny_source: ModelSource
) -> None:
    requests = mixed_requests(24)
    (found,) = answered(tmp_path, [(on_vllm, requests)], CAIFLOW_TEST_NO_WAITING="1")
    assert (found["runner"], found["ahead"]) == (2, True)
    assert_agree(tiny_source, requests, found["answers"], ask(load_engine(tiny_source), requests))


@needs_vllm
def test_exact_answers_are_the_same_to_the_bit_alone_in_a_crowd_and_again(tmp_path: Path, on_vllm: ModelSource) -> None:
    if capability() < (8, 0):
        pytest.skip("needs a GPU of compute capability 8.0 or higher")
    small_steps = {**ARGS, "max_num_batched_tokens": 128}  # so that prompts are read in pieces, at other places each time
    options = {"engine_args": small_steps, "num_gpus": 1}
    exact = on_vllm._replace(exact=True, dtype="bfloat16", options=options)
    crowd = [*mixed_requests(40), *scored_requests()]
    found = answered(tmp_path, [(exact, asked) for asked in (crowd, crowd[::-1], crowd[3:4], crowd[-1:])])
    once, reversed_, third, last = (one["answers"] for one in found)
    assert once == reversed_[::-1]
    assert (once[3], once[-1]) == (third[0], last[0])


@needs_vllm
@pytest.mark.skipif(GPUS < 2, reason="needs two NVIDIA GPUs")
def test_two_gpus_give_the_answers_of_one(tmp_path: Path, on_vllm: ModelSource, tiny_source: ModelSource) -> None:
    requests = mixed_requests(24)
    two = on_vllm._replace(options={"engine_args": ARGS, "num_gpus": 2})
    (found,) = answered(tmp_path, [(two, requests)])
    assert_agree(tiny_source, requests, found["answers"], ask(load_engine(tiny_source), requests))


@needs_vllm
def test_vllms_own_draws_follow_the_seed_alone_under_every_filter(tmp_path: Path, on_vllm: ModelSource) -> None:
    ways: list[dict[str, Any]] = [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}]
    requests = [Request("How do I bake", Sampling(temperature=1.2, max_tokens=12, **way), n) for n in range(4) for way in ways]
    own = on_vllm._replace(draws="vllm")
    crowded, few = answered(tmp_path, [(own, requests), (own, requests[5:8])])
    assert few["answers"] == crowded["answers"][5:8]
    assert len({_text(answer) for answer in crowded["answers"]}) > len(requests) / 2


def _text(answer: Answer) -> str:
    assert isinstance(answer, Completion)
    return answer.text


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("settings", [{"bf16": True}, {"lora": {"rank": 4, "quantization": "4bit"}}], ids=["bf16", "4bit"])
def test_each_trainer_trains_on_the_gpu(tmp_path: Path, trainer: str, settings: dict[str, Any]) -> None:
    if "lora" in settings:
        pytest.importorskip("bitsandbytes")
    model = small_model(tmp_path / "model", shape=EVEN)
    judge = reward_model(tmp_path / "judge", model)
    done = train(tmp_path / "run", trainer, model, judge, **settings)
    figures = [value for value in done.metrics.values() if isinstance(value, float)]
    assert figures
    assert all(map(math.isfinite, figures)), done.metrics
    if "lora" in settings:
        assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], abs=0.01)


@needs_vllm
@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "adapters"])
def test_vllm_draws_replies_beside_the_model_that_learns(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    model = small_model(tmp_path / "model", shape=EVEN)
    judge = reward_model(tmp_path / "judge", model)
    done = train(tmp_path / "run", "grpo", model, judge, lora=lora, use_vllm=True, vllm_gpu_memory_utilization=0.2)
    assert done.metrics["vllm_apart"] < 0.1


@pytest.mark.skipif(GPUS < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("trainer", DIVIDED)
@pytest.mark.parametrize("settings", [{"bf16": True}, {"bf16": False}, {"lora": {"rank": 4}}], ids=["bf16", "fp32", "lora"])
def test_a_model_is_divided_among_two_gpus(tmp_path: Path, trainer: str, settings: dict[str, Any], cluster: Any) -> None:
    model = small_model(tmp_path / "model", shape=EVEN)
    judge = reward_model(tmp_path / "judge", model)
    two = {"fsdp": True, "resources": {"workers": 2, "num_gpus": 1}, "cluster": cluster}
    done = train(tmp_path / "run", trainer, model, judge, **settings, **two)
    assert all(map(math.isfinite, (done.metrics["trained_loss"], done.metrics["saved_loss"])))


def command(home: Path, *arguments: str) -> str:
    """Run caiflow with a store of its own, under a path short enough for Ray's sockets, and return what it printed."""
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "caiflow.engine.cli", *arguments], env={**os.environ, "CAIFLOW_HOME": str(home)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_doctor_finds_every_part_in_order(tmp_path: Path) -> None:
    found = json.loads(command(tmp_path / "home", "doctor", "--json", "--try"))["findings"]
    assert [one for one in found if one["verdict"] == "broken"] == []


def test_the_quickstart_runs_with_engines_and_trainings_on_the_gpu(tmp_path: Path) -> None:
    command(tmp_path / "home", "run", str(ROOT / "specs" / "quickstart.yaml"), "--out", str(tmp_path / "run"))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = {event["kind"] for event in events if event["event"] == "engine_ready"}
    assert kinds == {"vllm" if find_spec("vllm") else "transformers"}
