"""Probabilities: shares from log-probabilities, shares kept within bounds, and how undecided they are."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, isfinite, log


def binary_entropy(p: float) -> float:
    """Return the entropy in bits of a coin with probability p: 1 for an undecided judge, 0 for a certain one."""
    if p in (0.0, 1.0):
        return 0.0
    return -(p * log(p) + (1 - p) * log(1 - p)) / log(2)


def normalise(logprobs: Mapping[str, float]) -> dict[str, float]:
    """Return the softmax over natural log-probabilities; all of them -inf gives equal shares."""
    top = max(logprobs.values())
    if not isfinite(top):
        return {key: 1 / len(logprobs) for key in logprobs}
    weights = {key: exp(value - top) for key, value in logprobs.items()}
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def bounded(shares: tuple[float, ...], bounds: tuple[float, float] | None) -> tuple[float, ...]:
    """Return shares within bounds that are meant for two options; None leaves them.

    Of more options, each is put within the same multiples of an equal share: any two have the odds that a pair may have.
    """
    if bounds is None:
        return shares
    if len(shares) == 2:
        first = clamped(shares[0], bounds)
        return first, 1 - first
    scale = 2 / len(shares)
    cut = [clamped(share, (bounds[0] * scale, bounds[1] * scale)) for share in shares]
    return tuple(share / sum(cut) for share in cut)


def clamped(p: float, bounds: tuple[float, float] | None) -> float:
    """Return a probability within bounds; None leaves it."""
    return p if bounds is None else min(max(p, bounds[0]), bounds[1])
