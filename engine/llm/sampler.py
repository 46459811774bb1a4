"""How the next token of each row of a batch is drawn.

Owns the arithmetic of temperature, top-k, top-p, min-p and repetition penalty. A row's draw depends on its own scores, its
seed and how many tokens it has, never on what else is in the batch, to the bit: tokens are compared by their scores, and masses
are added up as whole numbers, whose sum is the same in any order (a GPU orders sums by the batch's size). Imported on workers
only, since it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from caiflow.engine.llm.base import Sampling

_MASK64 = (1 << 64) - 1
_TOP_MASS = 1 << 40
"""Mass of the likeliest token: a vocabulary of 2^22 adds up below 2^62, and what is less likely by 2^-41 is never drawn."""
_PART_BITS = 31
"""Bits of a number in [0, 1) by which a mass is multiplied."""


def uniforms(seeds: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """Return for each row a number in [0, 1) ([B] float64) that only its seed and its count decide (splitmix64, two rounds)."""
    state = np.array([seed & _MASK64 for seed in seeds], dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = _splitmix(_splitmix(state) + np.array(counts, dtype=np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], seeds: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
    """Return the next token of each row, [B] int64, from `logits` [B, V] float32; greedy rows cost one argmax together.

    Never waits for the device: what decides a draw is known on the host and goes there in copies that are queued.
    """
    rows = [index for index, sampling in enumerate(samplings) if sampling.temperature > 0]
    if not rows:
        return logits.argmax(dim=-1)
    whole = len(rows) == len(samplings)
    where = on_device(np.array(rows), logits.device)
    drawn = draw_rows(
        logits if whole else logits[where], [samplings[i] for i in rows], [seeds[i] for i in rows], [counts[i] for i in rows]
    )
    return drawn if whole else logits.argmax(dim=-1).index_copy_(0, where, drawn)


def draw_rows(
    logits: torch.Tensor,
    samplings: Sequence[Sampling],
    seeds: Sequence[int],
    counts: Sequence[int],
    *,
    scaled: bool = False,
) -> torch.Tensor:
    """Return the next token of each row as `draw` does, where none is greedy; `scaled`: the temperature was applied before."""
    wanted = on_device(_parts(uniforms(seeds, counts)), logits.device)
    scores = _left(logits, samplings, scaled=scaled)
    total = _masses(scores).cumsum(dim=-1)
    found = torch.searchsorted(total, _part_of(total[:, -1:], wanted[:, None]), right=True)[:, 0]
    return found.clamp(max=scores.shape[-1] - 1)  # scores that are no numbers have no mass to find


def probabilities(logits: torch.Tensor, samplings: Sequence[Sampling], *, scaled: bool = False) -> torch.Tensor:
    """Return how likely each token is to be drawn, [B, V] float32, under each row's temperature, top-k, top-p and min-p."""
    masses = _masses(_left(logits, samplings, scaled=scaled))
    return masses / masses.sum(dim=-1, keepdim=True)


def logps_of(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log-probability [B] of each row's token under its scores [B, V], nothing being left out."""
    return scores.gather(-1, tokens[:, None])[:, 0] - scores.logsumexp(dim=-1)


def on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array as a tensor there; the copy to a GPU is queued, not waited for."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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


class _Settings(NamedTuple):
    """How the rows of a batch are drawn, on its device: [B, 1] each, float32, `top_p` in whole parts."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    min_p: torch.Tensor
    top_p: torch.Tensor


def _settings(samplings: Sequence[Sampling], device: torch.device) -> _Settings:
    packed = on_device(np.array([[s.temperature, s.top_k, s.min_p] for s in samplings], dtype=np.float32), device)
    top_p = on_device(_parts(np.array([s.top_p for s in samplings])), device)
    return _Settings(packed[:, 0, None], packed[:, 1, None], packed[:, 2, None], top_p[:, None])


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return on_device(np.array(values, dtype=np.float32), like.device).to(like.dtype)[:, None]


def _left(logits: torch.Tensor, samplings: Sequence[Sampling], *, scaled: bool) -> torch.Tensor:
    """Return the scores after the temperature, with what top-k, top-p and min-p leave out at -inf.

    Rows with a top-k look at that many tokens alone, rows with min-p alone at the likeliest; only top-p alone needs all sorted.
    """
    settings = _settings(samplings, logits.device)
    scores = logits if scaled else logits / settings.temperature
    vocabulary = scores.shape[-1]
    few = [i for i, s in enumerate(samplings) if s.top_k > 0]
    sorted_whole = [i for i, s in enumerate(samplings) if s.top_k == 0 and s.top_p < 1]
    if few:
        width = min(max(samplings[i].top_k for i in few), vocabulary)
        scores = _without_tail(scores, few, width, settings)
    if sorted_whole:
        scores = _without_tail(scores, sorted_whole, vocabulary, settings)
    if any(s.min_p > 0 and s.top_k == 0 and s.top_p == 1 for s in samplings):
        relative = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        scores = scores.masked_fill(relative < settings.min_p, -torch.inf)
    return scores


def _without_tail(scores: torch.Tensor, rows: Sequence[int], width: int, settings: _Settings) -> torch.Tensor:
    """Return `scores` with, in the given rows, all at -inf but what the filters keep of the `width` likeliest tokens.

    Tokens as likely as the last one kept are kept too, as transformers and vLLM do with top-k: which of them came first in an
    order would depend on the kernel that sorts.
    """
    where = on_device(np.array(rows), scores.device)
    asked = scores[where]
    ordered = (asked.sort(dim=-1, descending=True) if width == scores.shape[-1] else asked.topk(width, dim=-1)).values
    top_k = settings.top_k[where]
    drop = (torch.arange(width, device=scores.device)[None] >= top_k) & (top_k > 0)
    mass = _masses(ordered.masked_fill(drop, -torch.inf))
    total = mass.cumsum(dim=-1)
    bound = _part_of(total[:, -1:], settings.top_p[where])
    drop = drop | (total - mass >= bound)
    drop = drop | (torch.exp(ordered - ordered[:, :1]) < settings.min_p[where])
    drop[:, 0] = False
    last = ordered.gather(1, (~drop).sum(dim=-1, keepdim=True) - 1)
    return scores.index_copy(0, where, asked.masked_fill(asked < last, -torch.inf))


def _masses(scores: torch.Tensor) -> torch.Tensor:
    """Return how likely tokens are to be drawn, as whole numbers in proportion, [B, V] int64."""
    return (torch.exp(scores - scores.amax(dim=-1, keepdim=True)) * _TOP_MASS).long()


def _parts(numbers: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) as whole ones, in units of 2^-31."""
    return (numbers * (1 << _PART_BITS)).astype(np.int64)


def _part_of(total: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """Return the whole part of `total` times `parts` [B, 1], in units of 2^-31, without leaving 64 bits."""
    return (total >> _PART_BITS) * parts + ((total & ((1 << _PART_BITS) - 1)) * parts >> _PART_BITS)
