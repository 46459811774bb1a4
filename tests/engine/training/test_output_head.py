"""An adapter on the output head is learnt by TRL's losses as by the head itself: the same loss, the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.training.models import AdaptedHead, load_model, lora_config
from caiflow.engine.training.params import Lora
from caiflow.operators.sft import SftParams
from support.small_models import SHAPE, small_model

IDS = torch.arange(5, 45).reshape(2, 20)


def adapted(source: ModelSource, targets: list[str]) -> Any:
    """Return a model under adapters that aren't 0 any more, with TRL's way to its losses."""
    from peft import get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    lora = Lora(rank=4, targets=tuple(targets))
    model = load_model(source, SftParams.model_validate({"input": "rows", "model": "base", "lora": lora.model_dump()}))
    torch.manual_seed(0)
    under = get_peft_model(model, lora_config(lora, model))
    for name, weight in under.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    add_fused_lm_head(under.get_base_model())
    return under


def learnt(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens", "lm_head"], ["q_proj", "lm_head"]])
def test_losses_and_gradients_are_those_of_the_head_itself(tmp_path: Path, targets: list[str], tied: bool) -> None:
    model = adapted(small_model(tmp_path, shape=SHAPE.model_copy(update={"tie_word_embeddings": tied})), targets)
    assert isinstance(model.get_output_embeddings(), AdaptedHead)
    own, shown = (model(input_ids=IDS, labels=IDS, **way).loss for way in ({}, {"fused_lm_head": True}))
    assert shown.item() == pytest.approx(own.item(), abs=1e-5)
    expected, found = learnt(model, own), learnt(model, shown)
    assert any("lm_head" in name for name in expected)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
    with model.disable_adapter():
        before = [model(input_ids=IDS, labels=IDS, **way).loss.item() for way in ({}, {"fused_lm_head": True})]
    assert before[0] == pytest.approx(before[1], abs=1e-5)
    assert before[0] != pytest.approx(own.item(), abs=1e-2)
