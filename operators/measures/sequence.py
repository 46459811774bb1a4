"""Intervals of a rate that stay valid however often one looks, and stops when they are sharp enough.

Owns the formula alone. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from math import lgamma, log

_PRIOR = 0.5
"""Both parameters of the Beta mixture."""
_STEPS = 60


def anytime(successes: float, n: int, level: float = 0.05) -> tuple[float, float]:
    """Return the ends of a rate's confidence sequence after n trials: all of them, for all n, hold the truth with 1 - level.

    The likelihood of the trials under a Beta(1/2, 1/2) mixture of rates, over that under the true rate, is a martingale that
    begins at 1, so it ever reaches 1 / level with probability `level` at most. Shares within 0..1 that aren't 0 or 1 count as
    parts of a success: the ratio is convex in each, so that it stays a supermartingale.

    Raises:
        ValueError: `successes` outside 0..n.
    Source: H. Robbins, Statistical methods related to the law of the iterated logarithm, Ann. Math. Stat. 41 (1970), with
    Ville's inequality; Howard et al., Time-uniform, nonparametric, nonasymptotic confidence sequences, Ann. Stat. 49 (2021),
    for the mixture.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"anytime: successes must lie in 0..n, got {successes} of {n}")
    if not n:
        return 0.0, 1.0
    failures = n - successes
    mixture = _log_beta(_PRIOR + successes, _PRIOR + failures) - _log_beta(_PRIOR, _PRIOR)
    bound = mixture + log(level)

    def is_in(rate: float) -> bool:
        return _times_log(successes, rate) + _times_log(failures, 1 - rate) > bound

    middle = successes / n
    return _end(is_in, middle, 0.0), _end(is_in, middle, 1.0)


def _end(is_in: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where an interval that holds `inside` ends on the way to `outside`, from without."""
    if is_in(outside):
        return outside
    for _ in range(_STEPS):
        between = (inside + outside) / 2
        inside, outside = (between, outside) if is_in(between) else (inside, between)
    return outside


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _times_log(count: float, share: float) -> float:
    """Return count * log(share), 0 where nothing is counted."""
    if not count:
        return 0.0
    return count * log(share) if share > 0 else float("-inf")
