"""GRPO whose replies the real vLLM draws, on a CPU, beside the model that learns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.llm.base import ModelSource, Sampling
from caiflow.engine.operator import Job
from caiflow.engine.training.models import load_plain
from support.cutting_off import cut_off
from support.small_models import SHAPE, small_model
from support.trainings import reward_model, train

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.soak]

WIDE = SHAPE.model_copy(update={"num_attention_heads": 2})
"""Heads of 32, the narrowest that vLLM's attention takes on a CPU."""
FIELDS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "max_steps": -1,
    "num_train_epochs": 2,
    "max_completion_length": 16,
    "max_length": 128,
    "beta": 0.01,
    "use_vllm": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return small_model(tmp_path_factory.mktemp("model"), shape=WIDE)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, model: ModelSource) -> ModelSource:
    return reward_model(tmp_path_factory.mktemp("judge"), model)


def curve(done: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (done.out_dir / "_history.jsonl").read_text().splitlines()]


def test_the_reward_rises_and_replies_are_those_of_the_model_as_it_has_become(
    tmp_path: Path, model: ModelSource, judge: ModelSource
) -> None:
    done = train(tmp_path, "grpo", model, judge, **FIELDS, eval_input="held", temperature=0.8, top_p=0.95)
    assert done.metrics["reward_end"] > done.metrics["reward_start"] + 0.1
    assert done.metrics["kl_end"] > done.metrics["kl_start"]
    assert "eval_reward" in done.metrics
    assert furthest_apart(done) < 1e-3


def furthest_apart(done: Job) -> float:
    """Return how far log-probabilities were ever apart when a token was drawn and when it was learnt."""
    assert done.metrics["vllm_apart"] < 1e-4
    found = [point["sampling/sampling_logp_difference/max"] for point in curve(done) if "loss" in point]
    assert found
    return max(found)


def test_a_run_that_was_cut_off_draws_the_same_replies_again(tmp_path: Path, model: ModelSource, judge: ModelSource) -> None:
    fields = {**FIELDS, "save_steps": 3, "per_device_train_batch_size": 16, "lora": {"rank": 4}}
    fields |= {"eval_input": "held", "eval_strategy": "steps", "eval_steps": 3}
    undisturbed = train(tmp_path / "undisturbed", "grpo", model, judge, **fields)
    disturbed = tmp_path / "disturbed"
    again = partial(train, disturbed, "grpo", model, judge)
    cut_off(disturbed / "work", lambda stop: again(stop, logging_steps=1, **fields), checkpoints=2)
    resumed = again(**fields)
    assert curve(resumed) == curve(undisturbed)
    assert furthest_apart(resumed) < 1e-3


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def learning(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """Give vLLM and a model that has moved away from what vLLM began with."""
    import torch

    from caiflow.engine.llm.vllm.replies import Replies

    source = small_model(tmp_path, shape=WIDE.model_copy(update={"tie_word_embeddings": request.param}))
    drawer, model = Replies(source, 128, 0.3, [1]), load_plain(source, torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator) * 0.05)
    yield drawer, model
    drawer.close()


def apart(drawer: Any, model: Any) -> float:
    """Return how far the model's log-probabilities of replies are at most from those that they were drawn with."""
    import torch

    prompts = [[5, 6, 7, 8 + place] for place in range(6)]
    told: list[int] = []

    def ended(replies: Mapping[int, Sequence[int]]) -> None:
        told.extend(replies)

    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=24)
    replies, again = (drawer.draw(prompts, sampling, range(6), ended) for _ in range(2))
    assert [reply.ids for reply in replies] == [reply.ids for reply in again]
    assert sorted(told) == sorted(2 * [place for place, reply in enumerate(replies) if reply.ids[-1] == 1])
    furthest = 0.0
    for prompt, reply in zip(prompts, replies, strict=True):
        with torch.no_grad():
            logps = (model(torch.tensor([prompt + reply.ids])).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
        found = logps[torch.arange(len(reply.ids)), torch.tensor(reply.ids)]
        furthest = max(furthest, float((found - torch.tensor(reply.logps)).abs().max()))
    return furthest


def test_vllm_has_the_weights_that_it_is_given_and_forgets_what_the_old_ones_made(learning: tuple[Any, Any]) -> None:
    import torch

    from caiflow.engine.errors import EngineError
    from caiflow.engine.training.models import learnt_weights

    drawer, model = learning
    assert apart(drawer, model) > 0.1
    drawer.take(learnt_weights(model))
    assert apart(drawer, model) < 1e-4
    with pytest.raises(EngineError, match="vLLM can't take the weights"):
        drawer.take([("model.layers.0.no_such.weight", torch.zeros(2))])
