"""How likely given texts are under a loaded model: the log-probability of each of their tokens, from one forward pass.

Owns the bounds on the memory that whole texts' scores take. Renders nothing and keeps no cache. Imported on workers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_MOST_SCORES = 1 << 28
"""Scores (tokens times vocabulary) that one forward pass may leave: 1 GiB in float32."""
_POSITIONS = 512
"""Positions whose scores are widened to float32 at once."""


def token_budget(vocabulary: int, most: int) -> int:
    """Return the tokens of one forward pass, padding included: at most `most`, and so few that their scores fit."""
    return max(1, min(most, _MOST_SCORES // vocabulary))


def token_logprobs(model: Any, texts: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
    """Return, per text, for each token after its first its log-probability (natural) and whether it is the likeliest there.

    The padding stands behind the texts, where a causal model doesn't see it.
    """
    width = max(map(len, texts))
    padded = [[*ids, *[0] * (width - len(ids))] for ids in texts]
    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]
    ids = torch.tensor(padded, device=model.device)
    logits = model(input_ids=ids, attention_mask=torch.tensor(mask, device=model.device)).logits
    ends = [len(text) - 1 for text in texts]
    return [_row(scores[:end], own[1 : end + 1]) for scores, own, end in zip(logits, ids, ends, strict=True)]


def _row(scores: torch.Tensor, targets: torch.Tensor) -> list[tuple[float, bool]]:
    """Return the log-probabilities of `targets` [T] int64 under `scores` [T, V], computed in float32."""
    found: list[tuple[float, bool]] = []
    for start in range(0, len(targets), _POSITIONS):
        piece = slice(start, start + _POSITIONS)
        losses = torch.nn.functional.cross_entropy(scores[piece].float(), targets[piece], reduction="none")
        likeliest = scores[piece].argmax(dim=-1) == targets[piece]
        found += zip((-losses).tolist(), likeliest.tolist(), strict=True)
    return found
