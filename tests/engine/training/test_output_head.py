"""An adapter on the output head is learnt by TRL's losses as by the head itself: the same loss, the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.training.models import AdaptedHead, load_model, lora_config
from caiflow.engine.training.params import Lora
from caiflow.engine.training.private import find_adapters_once, score_learnt_alone
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


def test_a_frozen_head_scores_what_is_learnt_alone_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    scored, own = [], chunked_logprob.ChunkedLogProbFunction.apply
    monkeypatch.setattr(utils, "_use_triton", chunked_logprob._use_triton)
    monkeypatch.setattr(
        utils._ChunkedLogProbFunction, "apply", lambda hidden, *rest: scored.append(len(hidden)) or own(hidden, *rest)
    )
    model = adapted(small_model(tmp_path), ["q_proj"])
    labels = IDS.where(IDS % 20 > 11, -100)

    def trained() -> tuple[float, dict[str, torch.Tensor]]:
        loss = model(input_ids=IDS, labels=labels, fused_lm_head=True).loss
        return loss.item(), learnt(model, loss)

    all_of_them = trained()
    score_learnt_alone(model)
    alone = trained()
    assert scored == [38, int((labels[:, 1:] != -100).sum())]
    assert alone[0] == all_of_them[0]
    assert all(torch.equal(alone[1][name], gradient) for name, gradient in all_of_them[1].items())
    model.get_output_embeddings().requires_grad_(True)
    score_learnt_alone(model)
    assert utils._use_triton is chunked_logprob._use_triton


def test_adapters_found_once_are_laid_aside_as_ever_and_learn_on(tmp_path: Path) -> None:
    model = adapted(small_model(tmp_path), ["embed_tokens", "q_proj", "lm_head"])
    learning, own = [name for name, weight in model.named_parameters() if weight.requires_grad], model(input_ids=IDS).logits
    with model.disable_adapter():
        base = model(input_ids=IDS).logits
    find_adapters_once(model)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, base)
    assert not torch.equal(own, base)
    assert torch.equal(model(input_ids=IDS).logits, own)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == learning
