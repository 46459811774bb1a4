"""How the next token of each row of a batch is drawn.

Owns the arithmetic of temperature, top-k, top-p, min-p and repetition penalty. A row's draw depends on its own scores, its
seed and how many tokens it has, never on what else is in the batch. Imported on workers only, since it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from caiflow.engine.llm.base import Sampling

_MASK64 = (1 << 64) - 1


def uniforms(seeds: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """Return for each row a number in [0, 1) ([B] float64) that only its seed and its count decide (splitmix64, two rounds)."""
    state = np.array([seed & _MASK64 for seed in seeds], dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = _splitmix(_splitmix(state) + np.array(counts, dtype=np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], seeds: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
    """Return the next token of each row, [B] int64, from `logits` [B, V] float32; greedy rows cost one argmax together."""
    tokens = logits.argmax(dim=-1)
    rows = [index for index, sampling in enumerate(samplings) if sampling.temperature > 0]
    if not rows:
        return tokens
    chosen = [samplings[index] for index in rows]
    where = torch.tensor(rows, device=logits.device)
    scores = logits if len(rows) == len(samplings) else logits[where]
    probs = torch.softmax(_filtered(scores / _column([s.temperature for s in chosen], scores), chosen), dim=-1)
    wanted = uniforms([seeds[index] for index in rows], [counts[index] for index in rows])
    tokens[where] = _inverse(probs, torch.as_tensor(wanted, dtype=torch.float32, device=logits.device))
    return tokens


def penalised(logits: torch.Tensor, seen: torch.Tensor, penalties: Sequence[float]) -> torch.Tensor:
    """Return `logits` with the scores of `seen` ([B, V] bool) divided (where positive) or multiplied by each row's penalty.

    Source: CTRL (arXiv 1909.05858, section 4.1), with the sign handled as transformers and vLLM do.
    """
    factor = _column(penalties, logits)
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def _splitmix(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _filtered(scores: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Return `scores` with what top-k, top-p and min-p leave out set to -inf; only rows that ask are sorted."""
    rows = [i for i, s in enumerate(samplings) if s.top_k > 0 or s.top_p < 1 or s.min_p > 0]
    if not rows:
        return scores
    where = torch.tensor(rows, device=scores.device)
    asked = [samplings[index] for index in rows]
    ordered, order = scores[where].sort(dim=-1, descending=True, stable=True)
    probs = torch.softmax(ordered, dim=-1)
    width = scores.shape[-1]
    rank = torch.arange(width, device=scores.device)[None]
    drop = rank >= torch.tensor([s.top_k or width for s in asked], device=scores.device)[:, None]
    kept = torch.softmax(ordered.masked_fill(drop, -torch.inf), dim=-1)
    drop = drop | (kept.cumsum(dim=-1) - kept >= _column([s.top_p for s in asked], scores))
    drop = drop | (probs < probs[:, :1] * _column([s.min_p for s in asked], scores))
    drop[:, 0] = False
    scores = scores.clone()
    scores[where] = scores[where].masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
    return scores


def _inverse(probs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return per row the first token whose cumulative probability exceeds `wanted` [B]; never one of probability 0."""
    total = probs.cumsum(dim=-1)
    target = wanted[:, None] * total[:, -1:]
    found = torch.searchsorted(total, target, right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).to(torch.uint8).argmax(dim=-1)
    return torch.minimum(found, last)
