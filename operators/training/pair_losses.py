"""The losses of a single pair of replies, by their names in the library, and their weighing by soft labels.

Owns formulas only: pure functions of tensors, [B] float32 each, and of the library's configuration. Never has `aot`, which
sorts a batch, nor `sft`, which counts its tokens.
Sources: DPO, Rafailov et al. 2023 (arXiv 2305.18290); SLiC's hinge (2305.10425); IPO (2310.12036, eq. 17); EXO (2402.00856,
eq. 16); NCA (2402.05369); robust DPO (2403.00409); BCO (2404.04656); SPPO (2405.00675, eq. 4.7); APO (2408.06266, eqs. 7, 8);
DiscoPOP (2406.08414, eq. 5); f-divergences (2309.16240); LD-DPO (2409.06411); WPO (2406.11827, eq. 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from trl import DPOConfig


class Replies(NamedTuple):
    """One side of the pairs: its log-ratio to the reference, the score that its divergence makes of that, and its tokens."""

    log_ratio: Tensor
    score: Tensor
    tokens: Tensor

    @property
    def mean_score(self) -> Tensor:
        """The score for each token."""
        return self.score / self.tokens.clamp(min=1.0)


def logsigmoid(margin: Tensor) -> Tensor:
    """Return log(sigmoid(margin)), which is finite for every margin."""
    found: Tensor = functional.logsigmoid(margin)
    return found


PairLoss = Callable[[Replies, Replies, "DPOConfig"], Tensor]
"""The loss of each pair in which the first reply is the better one."""


def soft_loss(chosen: Replies, rejected: Replies, p: Tensor, config: DPOConfig) -> Tensor:
    """Return p L(chosen, rejected) + (1 - p) L(rejected, chosen), L being the weighted sum of the losses that are asked for."""
    kinds = [config.loss_type] if isinstance(config.loss_type, str) else config.loss_type
    weights = config.loss_weights or [1.0] * len(kinds)
    total = torch.zeros_like(p)
    for kind, weight in zip(kinds, weights, strict=True):
        loss = PAIR_LOSSES[kind]
        total = total + weight * (p * loss(chosen, rejected, config) + (1 - p) * loss(rejected, chosen, config))
    return total


def sequence_logps(logps: Tensor, mask: Tensor, tail_weight: float | None) -> Tensor:
    """Return each reply's log-probability [2B] from those of its tokens [2B, T]; the chosen replies come first.

    The tokens by which the longer reply of a pair exceeds the shorter count `tail_weight`, by default as the others do.
    """
    if tail_weight is None:
        return logps.sum(1)
    shorter = torch.minimum(*mask.sum(1).chunk(2)).repeat(2)
    tail = mask.cumsum(1) > shorter[:, None]
    return torch.where(tail, tail_weight * logps, logps).sum(1)


def score_of(log_ratio: Tensor, config: DPOConfig) -> Tensor:
    """Return f'(t) at the ratio t = exp(log_ratio), f being the divergence from the reference."""
    power: float = config.f_alpha_divergence_coef - 1.0
    if config.f_divergence_type == "forward_kl":
        return 1 - torch.exp(-log_ratio)
    if config.f_divergence_type == "js_divergence":
        return math.log(2) + logsigmoid(log_ratio)
    if config.f_divergence_type == "alpha_divergence" and abs(power) >= 1e-6:  # at power 0 the limit is log t
        return (torch.exp((power * log_ratio).clamp(max=80.0)) - 1.0) / power
    return log_ratio


def likelihood_weights(logps: Tensor, log_sum_sq_probs: Tensor, mask: Tensor) -> Tensor:
    """Return WPO's weights of the pairs [B]: how likely the model finds both replies, tokens [2B, T] beside what it expects."""
    mean = ((logps - log_sum_sq_probs) * mask).sum(1) / mask.sum(1).clamp(min=1)
    chosen, rejected = mean.exp().chunk(2)
    return (chosen * rejected).detach()


def _sigmoid(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    return -logsigmoid(config.beta * (better.score - worse.score))


def _sigmoid_norm(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    return -logsigmoid(config.beta * (better.mean_score - worse.mean_score))


def _hinge(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    return torch.relu(1 - config.beta * (better.score - worse.score))


def _ipo(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    target: float = 1 / (2 * config.beta)
    return (better.mean_score - worse.mean_score - target) ** 2


def _exo_pair(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    margin: Tensor = config.beta * (better.score - worse.score)
    smoothing = torch.tensor(config.label_smoothing, device=margin.device)
    right = margin.sigmoid() * (logsigmoid(margin) - torch.log1p(-smoothing))
    return right + (-margin).sigmoid() * (logsigmoid(-margin) - smoothing.log())


def _nca_pair(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    high, low = config.beta * better.log_ratio, config.beta * worse.log_ratio
    return -logsigmoid(high) - 0.5 * logsigmoid(-high) - 0.5 * logsigmoid(-low)


def _robust(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    margin: Tensor = config.beta * (better.score - worse.score)
    smoothing: float = config.label_smoothing
    return (-(1 - smoothing) * logsigmoid(margin) + smoothing * logsigmoid(-margin)) / (1 - 2 * smoothing)


def _bco_pair(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    return -logsigmoid(config.beta * better.log_ratio) - logsigmoid(-config.beta * worse.log_ratio)


def _sppo_hard(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    half: float = 0.5 / config.beta
    return (better.log_ratio - half) ** 2 + (worse.log_ratio + half) ** 2


def _apo_zero(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    return 1 - torch.sigmoid(config.beta * better.log_ratio) + torch.sigmoid(config.beta * worse.log_ratio)


def _apo_down(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    margin = config.beta * (better.log_ratio - worse.log_ratio)
    return torch.sigmoid(config.beta * better.log_ratio) + (1 - torch.sigmoid(margin))


def _discopop(better: Replies, worse: Replies, config: DPOConfig) -> Tensor:
    margin = config.beta * (better.score - worse.score)
    share = torch.sigmoid(margin / config.discopop_tau)
    return -logsigmoid(margin) * (1 - share) + torch.exp(-margin) * share


PAIR_LOSSES: dict[str, PairLoss] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
}
