"""PPO's formulas by hand-computed cases and properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from caiflow.operators.training.ppo_formulas import advantages_of, masked_mean, policy_loss, shaped_rewards, value_loss, whiten

MASK = tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])


def test_rewards_are_the_penalty_on_each_token_and_the_score_on_the_last() -> None:
    ratio = tensor([[0.1, -0.2, 0.3], [0.5, 0.0, 9.0]])
    found = shaped_rewards(tensor([2.0, -1.0]), ratio, MASK, beta=0.1)
    assert torch.allclose(found, tensor([[-0.01, 0.02, 2.0 - 0.03], [-0.05, -1.0, 0.0]]))


def test_an_empty_reply_has_no_reward() -> None:
    assert shaped_rewards(tensor([3.0]), tensor([[0.4, 0.4]]), tensor([[0.0, 0.0]]), 0.1).tolist() == [[0.0, 0.0]]


def test_advantages_by_hand() -> None:
    rewards, values = tensor([[1.0, 0.0, 2.0]]), tensor([[0.5, 1.0, 0.25]])
    gamma, lam = 0.9, 0.5
    third = 2.0 - 0.25
    second = (0.0 + gamma * 0.25 - 1.0) + gamma * lam * third
    first = (1.0 + gamma * 1.0 - 0.5) + gamma * lam * second
    advantages, returns = advantages_of(rewards, values, torch.ones(1, 3), gamma, lam)
    assert advantages[0].tolist() == pytest.approx([first, second, third])
    assert returns[0].tolist() == pytest.approx([first + 0.5, second + 1.0, third + 0.25])


def test_without_discount_and_with_lambda_1_returns_are_what_is_still_to_come() -> None:
    rewards, values = torch.randn(2, 3) * MASK, torch.randn(2, 3)
    advantages, returns = advantages_of(rewards, values, MASK, 1.0, 1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1) * MASK
    assert torch.allclose(returns, to_come, atol=1e-6)
    assert torch.allclose(advantages, (to_come - values) * MASK, atol=1e-6)


def test_padding_changes_nothing() -> None:
    rewards, values = tensor([[0.3, 1.0]]), tensor([[0.2, 0.1]])
    short = advantages_of(rewards, values, torch.ones(1, 2), 1.0, 0.95)
    wide = [torch.cat([table, tensor([[7.0, 8.0]])], 1) for table in (rewards, values)]
    padded = advantages_of(*wide, tensor([[1.0, 1.0, 0.0, 0.0]]), 1.0, 0.95)
    for one, other in zip(short, padded, strict=True):
        assert torch.allclose(other[:, :2], one)
        assert other[:, 2:].abs().sum() == 0


def test_the_clip_by_hand() -> None:
    ratios = tensor([[1.5, 0.5, 1.1]])
    advantages = tensor([[1.0, -1.0, 2.0]])
    loss, share = policy_loss(ratios.log(), torch.zeros(1, 3), advantages, torch.ones(1, 3), 0.2)
    assert loss.item() == pytest.approx(-(1.2 - 0.8 + 2.2) / 3)
    assert share.item() == pytest.approx(2 / 3), "a rise beyond the clip and a fall beyond it are cut off"
    worse, _ = policy_loss(ratios.log(), torch.zeros(1, 3), -advantages, torch.ones(1, 3), 0.2)
    assert worse.item() == pytest.approx((1.5 - 0.5 + 2.2) / 3), "what makes the objective worse is never cut off"


def test_where_the_clip_holds_no_gradient_flows() -> None:
    logps = tensor([[math.log(1.5), math.log(1.1)]], requires_grad=True)
    policy_loss(logps, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), 0.2)[0].backward()
    assert logps.grad is not None
    assert logps.grad[0, 0] == 0
    assert logps.grad[0, 1] == pytest.approx(-1.1 / 2)


def test_the_value_loss_by_hand() -> None:
    values, old, returns = tensor([[1.0, 0.1]]), tensor([[0.0, 0.0]]), tensor([[1.0, 0.5]])
    loss = value_loss(values, old, returns, torch.ones(1, 2), 0.2)
    assert loss.item() == pytest.approx(0.5 * ((0.2 - 1.0) ** 2 + (0.1 - 0.5) ** 2) / 2)


def test_whitening_counts_only_what_is_there() -> None:
    values = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 1000.0]])
    found = whiten(values, MASK)
    assert found[1, 2] == 0
    assert masked_mean(found, MASK).item() == pytest.approx(0, abs=1e-6)
    assert masked_mean(found**2, MASK).item() == pytest.approx(1, abs=1e-4)
