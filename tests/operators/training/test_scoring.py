"""How good scores are, by hand-computed cases; and scores that don't depend on their batch."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.training.models import load_plain, load_tokenizer
from caiflow.operators.training.scoring import load_reward, quality, raw_scores, sigmoid, soft_loss

finite = st.floats(-50, 50)


def test_quality_by_hand() -> None:
    found = quality([2.0, 0.0, 1.0, 5.0], [0.0, 1.0, 1.0, 0.0], [1.0, 0.9, 0.8, 0.5], bins=2)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3), "an even label doesn't count, an even score half"
    assert found["margin"] == pytest.approx((2 - 1 + 0 + 5) / 4)
    above = [(sigmoid(2), 1.0), (sigmoid(1), 0.1), (0.5, 0.8), (0.5, 0.2), (sigmoid(5), 0.5)]
    gap = abs(sum(q for q, _ in above) / 5 - sum(p for _, p in above) / 5)
    below = [(1 - sigmoid(2), 0.0), (1 - sigmoid(1), 0.9), (1 - sigmoid(5), 0.5)]
    other = abs(sum(q for q, _ in below) / 3 - sum(p for _, p in below) / 3)
    assert found["ece"] == pytest.approx((5 * gap + 3 * other) / 8)


def test_without_a_decided_pair_there_is_no_accuracy() -> None:
    assert quality([2.0, 1.0], [0.0, 1.0], [0.5, 0.5])["accuracy"] is None


def test_a_perfect_model_is_calibrated() -> None:
    labels = [0.1, 0.3, 0.6, 0.95]
    margins = [math.log(p / (1 - p)) for p in labels]
    found = quality(margins, [0.0] * 4, labels)
    assert found["ece"] == pytest.approx(0, abs=1e-12)
    assert found["accuracy"] == 1.0


@given(margin=finite, p=st.floats(0, 1))
def test_soft_loss_is_symmetric_and_no_less_than_the_label_s_entropy(margin: float, p: float) -> None:
    assert soft_loss(margin, p) == pytest.approx(soft_loss(-margin, 1 - p), abs=1e-9)
    entropy = -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
    assert soft_loss(margin, p) >= entropy - 1e-9


@given(margin=st.floats(-800, 800))
def test_sigmoid_never_overflows(margin: float) -> None:
    assert 0 <= sigmoid(margin) <= 1
    assert sigmoid(margin) == pytest.approx(1 - sigmoid(-margin), abs=1e-12)


def test_scores_don_t_depend_on_the_batch(model: ModelSource) -> None:
    network = load_plain(model, task="reward")
    network.config.pad_token_id = pad = load_tokenizer(model).pad_token_id
    sequences = [[1, 20, 30], [1, 20, 30, 40, 50, 60], [1, 9], [1, 20, 30, 41]]
    alone = [raw_scores(network, [ids], pad)[0] for ids in sequences]
    assert raw_scores(network, sequences, pad, batch_size=3) == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_a_language_model_is_no_reward_model(model: ModelSource) -> None:
    with pytest.raises(StepError, match="not a reward model"):
        load_reward(model)
