"""The soft reward loss against the library's own and against the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.render import Renderer
from caiflow.engine.training.models import load_plain, load_tokenizer
from caiflow.engine.training.tokens import preferences
from support.small_models import preferences as rows
from support.small_models import saved


def trainer(model: ModelSource, folder: Path, p: float, *, bare: bool = False) -> Any:
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer

    from caiflow.operators.training.preference_model import SoftReward, SoftRewardCollator

    tokenizer = load_tokenizer(model)
    data = preferences(saved(folder / "rows", rows([p])[:6]), Renderer(tokenizer), max_length=100).data
    options = {} if bare else {"data_collator": SoftRewardCollator(pad_token_id=tokenizer.pad_token_id)}
    if bare:
        whole = [{side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in data]
        data = type(data).from_list(whole)
    set_seed(0)
    args = RewardConfig(str(folder), report_to="none", bf16=False, use_cpu=True, disable_tqdm=True, max_length=None)
    kind = RewardTrainer if bare else SoftReward
    return kind(model=load_plain(model, task="reward"), args=args, train_dataset=data, processing_class=tokenizer, **options)


def batch(made: Any) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = made.data_collator([made.train_dataset[place] for place in range(6)])
    return loaded


def test_certain_labels_give_the_library_s_loss_to_the_last_digit(model: ModelSource, tmp_path: Path) -> None:
    theirs = trainer(model, tmp_path / "theirs", 1.0, bare=True)
    ours = trainer(model, tmp_path / "ours", 1.0)
    assert ours.compute_loss(ours.model, batch(ours)).item() == theirs.compute_loss(theirs.model, batch(theirs)).item()


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.9])
def test_soft_labels_are_a_cross_entropy(model: ModelSource, tmp_path: Path, p: float) -> None:
    made = trainer(model, tmp_path, p)
    inputs = batch(made)
    loss = made.compute_loss(made.model, inputs)
    with torch.no_grad():
        scores = made.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]
    chosen, rejected = scores.chunk(2)
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(chosen - rejected, torch.full((6,), p))
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
