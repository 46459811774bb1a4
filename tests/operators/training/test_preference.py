"""Soft DPO against the library's own loss and against the formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.render import Renderer
from caiflow.engine.training.models import load_plain, load_tokenizer
from caiflow.engine.training.tokens import preferences
from caiflow.operators.training.pair_losses import PAIR_LOSSES
from support.small_models import preferences as rows
from support.small_models import saved, small_model

BETA = 0.3


@pytest.fixture(scope="module")
def models(model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, ModelSource]:
    """The model that is trained and another one to hold it near."""
    return model, small_model(tmp_path_factory.mktemp("reference"), seed=1)


def trainer(
    models: tuple[ModelSource, ModelSource], folder: Path, p: float, *, bare: bool = False, soft: bool = True, **config: Any
) -> Any:
    from trl import DPOConfig, DPOTrainer

    from caiflow.operators.training.preference import SoftCollator, SoftDPO

    tokenizer = load_tokenizer(models[0])
    data = preferences(saved(folder / "rows", rows([p])[:6]), Renderer(tokenizer), max_length=100).data
    args = DPOConfig(str(folder), beta=BETA, report_to="none", bf16=False, use_cpu=True, disable_tqdm=True, **config)
    options: dict[str, Any] = {"data_collator": SoftCollator(pad_token_id=tokenizer.pad_token_id), "soft": soft}
    if bare:
        options = {}
        data = data.remove_columns("p_chosen").map(lambda row: {"prompt": "p", "chosen": "c", "rejected": "r", **row})
    made = (DPOTrainer if bare else SoftDPO)(
        model=load_plain(models[0]),
        ref_model=load_plain(models[1]),
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        **options,
    )
    if bare:
        made.train_dataset = data
    made.model.train()
    return made


def batch(made: Any) -> dict[str, torch.Tensor]:
    loaded = made.data_collator([made.train_dataset[place] for place in range(6)])
    return {name: tensor.to(made.accelerator.device) for name, tensor in loaded.items()}


def loss(made: Any) -> torch.Tensor:
    inputs = batch(made)
    value: torch.Tensor = made.compute_loss(made.model, inputs)
    return value


def gradient(made: Any, value: torch.Tensor) -> torch.Tensor:
    made.model.zero_grad()
    value.backward()
    return torch.cat([parameter.grad.flatten() for parameter in made.model.parameters() if parameter.grad is not None])


def test_what_the_reference_says_beforehand_is_in_each_process_and_no_file(
    models: tuple[ModelSource, ModelSource], tmp_path: Path
) -> None:
    made = trainer(models, tmp_path, 0.9, precompute_ref_log_probs=True, per_device_train_batch_size=4)
    assert made.train_dataset.cache_files == [], "a process's own, of which others know no path"
    asked = made.compute_ref_log_probs(made.ref_model, batch(made))
    for side, name in zip(asked, ("ref_chosen_logps", "ref_rejected_logps"), strict=True):
        assert list(made.train_dataset[name]) == pytest.approx(side.tolist(), rel=1e-4)


@pytest.mark.parametrize("variant", sorted(PAIR_LOSSES))
def test_certain_labels_give_the_library_s_loss_and_gradient(
    models: tuple[ModelSource, ModelSource], tmp_path: Path, variant: str
) -> None:
    smoothing = 0.01 if variant in ("exo_pair", "robust") else 0.0
    config = {"loss_type": [variant], "label_smoothing": smoothing}
    theirs = trainer(models, tmp_path / "theirs", 1.0, bare=True, **config)
    expected = theirs.compute_loss(theirs.model, {k: v for k, v in batch(theirs).items() if k != "p_chosen"})
    for soft in (False, True):
        ours = trainer(models, tmp_path / str(soft), 1.0, soft=soft, **config)
        found = loss(ours)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    if variant != "hinge":  # the library changes its output in place, which its gradient doesn't survive
        torch.testing.assert_close(gradient(ours, found), gradient(theirs, expected), rtol=1e-4, atol=1e-7)


def swapped(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.roll(len(value) // 2, 0) for name, value in inputs.items()}


@pytest.mark.parametrize(
    "config",
    [
        *({"loss_type": [name]} for name in sorted(PAIR_LOSSES)),
        {"loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0, 0.25]},
        *({"f_divergence_type": name} for name in ("forward_kl", "js_divergence", "alpha_divergence")),
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
        {"ld_alpha": 0.3},
        {"use_weighting": True},
        {"use_weighting": True, "loss_type": ["robust"], "label_smoothing": 0.1, "ld_alpha": 0.5},
    ],
    ids=str,
)
def test_a_soft_label_mixes_the_library_s_losses_of_both_orders(
    models: tuple[ModelSource, ModelSource], tmp_path: Path, config: dict[str, Any]
) -> None:
    config = {"label_smoothing": 0.01, **config} if config.get("loss_type") in (["exo_pair"], ["robust"]) else config
    theirs, ours = (
        trainer(models, tmp_path / "theirs", 0.3, bare=True, **config),
        trainer(models, tmp_path, 0.3, **config),
    )
    inputs = batch(theirs)
    with torch.no_grad():
        both = [theirs.compute_loss(theirs.model, one).item() for one in (inputs, swapped(inputs))]
        assert loss(ours).item() == pytest.approx(0.3 * both[0] + 0.7 * both[1], rel=1e-5)


def margins(made: Any) -> torch.Tensor:
    """Return the difference of the log-ratios, computed here from plain logits."""
    inputs = batch(made)
    sums = []
    for network in (made.model, made.ref_model):
        with torch.no_grad():
            logits = network(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        picked = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
        sums.append((picked * inputs["completion_mask"][:, 1:]).sum(1))
    chosen, rejected = (sums[0] - sums[1]).chunk(2)
    return chosen - rejected


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.85, 1.0])
def test_soft_labels_weigh_both_orders(models: tuple[ModelSource, ModelSource], tmp_path: Path, p: float) -> None:
    made = trainer(models, tmp_path, p)
    d = BETA * margins(made)
    by_hand = -(p * torch.nn.functional.logsigmoid(d) + (1 - p) * torch.nn.functional.logsigmoid(-d)).mean()
    assert loss(made).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_label_and_its_opposite_with_swapped_replies_are_one(models: tuple[ModelSource, ModelSource], tmp_path: Path) -> None:
    made = trainer(models, tmp_path, 0.3, loss_type=["ipo"])
    inputs = batch(made)
    turned = {**swapped(inputs), "p_chosen": 1 - inputs["p_chosen"]}
    first = made.compute_loss(made.model, inputs).item()
    assert made.compute_loss(made.model, turned).item() == pytest.approx(first, rel=1e-6)


def test_figures_are_those_of_the_pairs_in_their_own_order(models: tuple[ModelSource, ModelSource], tmp_path: Path) -> None:
    made, theirs = trainer(models, tmp_path, 0.7), trainer(models, tmp_path / "theirs", 0.7, bare=True)
    loss(made)
    loss(theirs)
    shown, expected = made._metrics["train"], theirs._metrics["train"]
    assert {len(values) for values in shown.values()} == {1}
    assert shown["rewards/margins"][0] == pytest.approx(BETA * margins(made).mean().item(), rel=1e-4)
    del expected["num_tokens"]  # begins anew where a run is resumed, so it isn't shown
    assert {name: values[0] for name, values in shown.items()} == pytest.approx(
        {k: v[0] for k, v in expected.items()}, rel=1e-5
    )


def test_rows_of_a_batch_keep_their_own_labels(models: tuple[ModelSource, ModelSource], tmp_path: Path) -> None:
    made = trainer(models, tmp_path, 1.0)
    inputs = batch(made)
    inputs["p_chosen"] = torch.tensor([0.1, 0.9, 0.5, 1.0, 0.0, 0.6])
    d = BETA * margins(made)
    p = inputs["p_chosen"]
    by_hand = -(p * torch.nn.functional.logsigmoid(d) + (1 - p) * torch.nn.functional.logsigmoid(-d)).mean()
    assert made.compute_loss(made.model, inputs).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_smoothing_moves_labels_towards_their_opposite() -> None:
    from caiflow.operators.training.preference import softened

    assert softened(1.0, 0.0) == 1.0
    assert softened(1.0, 0.1) == pytest.approx(0.9)
    assert softened(0.0, 0.1) == pytest.approx(0.1)
    assert math.isclose(softened(0.5, 0.3), 0.5)
