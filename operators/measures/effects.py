"""What moves a judge beside what an answer is worth: the place it is shown at, its length, and who wrote it.

Owns the formula and nothing else: it asks no judge. Deterministic given its seed. numpy is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.operators.measures.agreement import Figure

if TYPE_CHECKING:
    import numpy as np

PRIOR = 5.0
"""Standard deviation of the normal prior around 0 on each effect, in log-odds: keeps one that always decides finite."""


class JudgedVote(NamedTuple):
    """One vote of a judge: the probability that it gave to the answer shown first, and what each effect weighs there.

    `pair` says which votes are of the same pair. `weights` are by effect: `position` is 1, `length` the first answer's length
    against the second's in doublings, `people` and `own` 1, -1 or 0 as the first, the second or neither is people's choice or
    the judge's own.
    """

    pair: str
    p_first: float
    weights: Mapping[str, float]


def effects(votes: Sequence[JudgedVote], *, seed: int = 0, draws: int = 400) -> dict[str, dict[str, Any]]:
    """Return each effect in log-odds with its 95% interval; none that nothing tells: a weight that is 0 throughout, no votes.

    The log-odds of the answer shown first are taken as the sum of the effects times their weights (logistic regression, which
    takes probabilities as it takes verdicts), so that each is what remains with the others held fixed. The interval has the
    middle 95% over draws that weigh whole pairs anew by an exponential: votes on one pair aren't independent.

    Source: Bradley and Terry, Biometrika 39 (1952), with an order effect as Davidson and Beaver, Biometrics 33 (1977); Rubin,
    Annals of Statistics 9 (1981) for the draws.
    """
    import numpy as np

    names = [name for name in dict.fromkeys(n for vote in votes for n in vote.weights) if any(v.weights[name] for v in votes)]
    if not names:
        return {}
    design = np.array([[vote.weights[name] for name in names] for vote in votes], dtype=np.float64)
    share = np.array([vote.p_first for vote in votes], dtype=np.float64)
    places = {pair: place for place, pair in enumerate(dict.fromkeys(vote.pair for vote in votes))}
    of_pair = np.array([places[vote.pair] for vote in votes])
    found = _fit(design, share, np.ones(len(votes)))
    rng = np.random.default_rng(seed)
    drawn = np.array([_fit(design, share, rng.exponential(size=len(places))[of_pair]) for _ in range(draws)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    ends = zip(names, found, low, high, strict=True)
    return {name: Figure(float(v), len(places), float(a), float(b)).as_dict() for name, v, a, b in ends}


def _fit(design: np.ndarray, share: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the most likely effects under the prior, by Newton's method; each vote counts as `weight` says."""
    import numpy as np

    effect = np.zeros(design.shape[1])
    ridge = np.eye(design.shape[1]) / PRIOR**2
    for _ in range(50):
        given = 1 / (1 + np.exp(-np.clip(design @ effect, -30, 30)))
        slope = design.T @ (weight * (share - given)) - ridge @ effect
        curve = (design * (weight * given * (1 - given))[:, None]).T @ design + ridge
        step = np.linalg.solve(curve, slope)
        effect = effect + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return effect
