"""How the next token of each row of a batch is drawn.

Owns the arithmetic of temperature, top-k, top-p, min-p and repetition penalty. A row's draw depends on its own scores, its
seed and how many tokens it has, never on what else is in the batch. Imported on workers only, since it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

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
    wanted = on_device(uniforms(seeds, counts).astype(np.float32), logits.device)
    return _inverse(probabilities(logits, samplings, scaled=scaled), wanted)


def probabilities(logits: torch.Tensor, samplings: Sequence[Sampling], *, scaled: bool = False) -> torch.Tensor:
    """Return how likely each token is to be drawn, [B, V] float32, under each row's temperature, top-k, top-p and min-p."""
    settings = _settings(samplings, logits.device)
    scores = logits if scaled else logits / settings.temperature
    return torch.softmax(_filtered(scores, samplings, settings), dim=-1)


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
    """How the rows of a batch are drawn, on its device: [B, 1] float32 each."""

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    min_p: torch.Tensor


def _settings(samplings: Sequence[Sampling], device: torch.device) -> _Settings:
    columns = [[s.temperature, s.top_p, s.top_k, s.min_p] for s in samplings]
    packed = on_device(np.array(columns, dtype=np.float32), device)
    return _Settings(*(packed[:, place, None] for place in range(len(_Settings._fields))))


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return on_device(np.array(values, dtype=np.float32), like.device).to(like.dtype)[:, None]


def _filtered(scores: torch.Tensor, samplings: Sequence[Sampling], settings: _Settings) -> torch.Tensor:
    """Return `scores` with what top-k, top-p and min-p leave out at -inf.

    Rows with a top-k look at that many tokens alone, rows with min-p alone at the likeliest; only top-p alone needs all sorted.
    """
    vocabulary = scores.shape[-1]
    few = [i for i, s in enumerate(samplings) if s.top_k > 0]
    sorted_whole = [i for i, s in enumerate(samplings) if s.top_k == 0 and s.top_p < 1]
    if few:
        width = min(max(samplings[i].top_k for i in few), vocabulary)
        scores = _without_tail(scores, few, width, settings)
    if sorted_whole:
        scores = _without_tail(scores, sorted_whole, vocabulary, settings)
    if any(s.min_p > 0 and s.top_k == 0 and s.top_p == 1 for s in samplings):
        probs = torch.softmax(scores, dim=-1)
        scores = scores.masked_fill(probs < probs.amax(dim=-1, keepdim=True) * settings.min_p, -torch.inf)
    return scores


def _without_tail(scores: torch.Tensor, rows: Sequence[int], width: int, settings: _Settings) -> torch.Tensor:
    """Return `scores` with, in the given rows, all at -inf but what the filters keep of the `width` likeliest tokens."""
    where = on_device(np.array(rows), scores.device)
    asked = scores[where]
    if width == scores.shape[-1]:
        ordered, order = asked.sort(dim=-1, descending=True, stable=True)
    else:
        ordered, order = asked.topk(width, dim=-1)
    top_k = settings.top_k[where]
    drop = (torch.arange(width, device=scores.device)[None] >= top_k) & (top_k > 0)
    kept = torch.softmax(ordered.masked_fill(drop, -torch.inf), dim=-1)
    drop = drop | (kept.cumsum(dim=-1) - kept >= settings.top_p[where])
    drop = drop | (torch.exp(ordered - ordered[:, :1]) < settings.min_p[where])
    drop[:, 0] = False
    tail = torch.full_like(asked, -torch.inf)
    return scores.index_copy(0, where, tail.scatter(1, order, ordered.masked_fill(drop, -torch.inf)))


def _inverse(probs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return per row the first token whose cumulative probability exceeds `wanted` [B]; never one of probability 0."""
    total = probs.cumsum(dim=-1)
    target = wanted[:, None] * total[:, -1:]
    found = torch.searchsorted(total, target, right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).to(torch.uint8).argmax(dim=-1)
    return torch.minimum(found, last)
