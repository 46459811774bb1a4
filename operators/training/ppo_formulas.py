"""The formulas of proximal policy optimisation: pure functions of tensors, [B, T] float32 with a mask of 0 and 1.

Sources: Schulman et al. 2017 (arXiv 1707.06347) for the clipped objective, Schulman et al. 2016 (1506.02438) for GAE, and
Bai et al. 2022 (2204.05862, section 4.1) for the penalty on the divergence from the supervised model within the reward.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the positions where the mask is 1; 0 where there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Return values of mean 0 and standard deviation 1 over the masked positions, and 0 elsewhere."""
    centred = values - masked_mean(values, mask)
    return centred * (masked_mean(centred**2, mask) + 1e-8).rsqrt() * mask


def shaped_rewards(scores: Tensor, log_ratio: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Return the rewards of tokens [B, T]: -beta times the log-ratio to the reference; the last one gets the score [B] too."""
    rewards = -beta * log_ratio * mask
    last = (mask.sum(1) - 1).clamp(min=0).long()
    return rewards.scatter_add(1, last[:, None], (scores * mask.any(1))[:, None].to(rewards.dtype))


def advantages_of(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates and the returns that the values should have been, [B, T] each.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, with 0 after the last token.
    """
    advantages = torch.zeros_like(rewards)
    ahead = torch.zeros_like(rewards[:, 0])
    after = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.size(1) - 1, -1, -1):
        delta = rewards[:, t] + gamma * after - values[:, t]
        ahead = (delta + gamma * lam * ahead) * mask[:, t]
        after = values[:, t] * mask[:, t]
        advantages[:, t] = ahead
    return advantages, (advantages + values) * mask


def policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate loss and the share of tokens whose gradient the clip cuts off."""
    ratio = torch.exp((logps - old_logps) * mask)
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - epsilon, 1 + epsilon)
    return masked_mean(torch.max(free, clipped), mask), masked_mean((clipped > free).float(), mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Return half the squared error of the values, the greater one of as they are and held within `clip` of the old ones."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.max((values - returns) ** 2, (held - returns) ** 2), mask)
