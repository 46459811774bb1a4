"""What is to save memory does so in a real training, which learns the same: small states, layers computed again, one base."""

from __future__ import annotations

import gc
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.llm.base import ModelSource
from support.trainings import reward_model, train

pytestmark = pytest.mark.soak


def state_digits(optimizer: Any, vocabulary: int) -> tuple[set[str], set[str]]:
    """Return the digits of an optimizer's states: of tables for tokens, and of other weights as large as are rounded at all."""
    tables, others = set[str](), set[str]()
    for weight, state in optimizer.state.items():
        for tensor in state.values():
            if getattr(tensor, "shape", None) == weight.shape and weight.numel() >= 4096:
                (tables if len(weight) == vocabulary else others).add(str(tensor.dtype).removeprefix("torch."))
    return tables, others


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
@pytest.mark.parametrize(
    ("optim", "digits"), [("adamw_torch", "float32"), ("adamw_8bit", "uint8"), ("paged_adamw_8bit", "uint8")]
)
def test_states_have_the_digits_that_were_asked_for(tmp_path: Path, model: ModelSource, optim: str, digits: str) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    vocabulary = json.loads((Path(model.path) / "config.json").read_text())["vocab_size"]
    seen: list[tuple[set[str], set[str]]] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(state_digits(optimizer, vocabulary)))
    try:
        done = train(tmp_path, "sft", model, optim=optim, max_steps=6)
    finally:
        hook.remove()
    assert seen
    assert all(found == ({"float32"}, {digits}) for found in seen), "tables for tokens stay whole"
    assert done.metrics["final_loss"] == pytest.approx(4.181, abs=0.01), "rounded states learn what whole ones do"


def test_layers_are_computed_again_and_learn_the_same(tmp_path: Path, model: ModelSource) -> None:
    from torch.nn.modules.module import register_module_forward_pre_hook
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    losses, counts = [], []
    for again in (False, True):
        calls: list[int] = []

        def count(layer: Any, *_: Any, calls: list[int] = calls) -> None:
            calls.extend([1] * isinstance(layer, LlamaDecoderLayer))

        hook = register_module_forward_pre_hook(count)
        try:
            done = train(tmp_path / str(again), "sft", model, gradient_checkpointing=again, max_steps=4)
        finally:
            hook.remove()
        losses.append(done.metrics["final_loss"])
        counts.append(len(calls))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    layers, steps = 2, 4
    assert counts[1] - counts[0] == layers * steps, "once more for each backward pass"


def bases() -> set[int]:
    """Return where the first weights of all models that there are lie, whatever holds them."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) is LlamaAttention and thing.layer_idx == 0]
    return {attention.q_proj.weight.data_ptr() for attention in found}


@pytest.mark.parametrize(("lora", "models"), [({"rank": 4}, 1), (None, 2)])
@pytest.mark.parametrize("trainer", ["dpo", "grpo"])
def test_under_adapters_the_reference_is_the_base_itself(
    tmp_path: Path, model: ModelSource, trainer: str, lora: dict[str, int] | None, models: int
) -> None:
    judge = reward_model(tmp_path / "judge", model) if trainer == "grpo" else None
    before, held = bases(), list[int]()

    def look(**_: Any) -> None:
        held.append(len(bases() - before))

    train(tmp_path / "training", trainer, model, judge, look, lora=lora, logging_steps=1, max_steps=2)
    assert set(held) == {models + (judge is not None)}, "a reward model is one more"
