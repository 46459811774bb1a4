"""Figures with their uncertainty: rates, ratings from comparisons, calibration.

Owns the formulas and nothing else: it reads no files, asks no models and knows no operator. All of it is deterministic given
its seed. numpy is imported where it is used, so that importing this module stays cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Z_95 = 1.959963984540054
"""Standard normal quantile at 0.975: the half-width of a 95% interval in standard deviations."""
ELO_PER_NAT = 400 / log(10)
"""Elo points per unit of log-odds: a difference of d points wins with odds 10 ** (d / 400)."""


class Estimate(NamedTuple):
    """A rate with its number of trials and the ends of its 95% interval; without any trial it is None, within 0..1."""

    rate: float | None
    n: int
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Return the four figures under the names that metrics.json has."""
        return self._asdict()


def wilson(successes: float, n: int, z: float = Z_95) -> Estimate:
    """Return a binomial rate with its Wilson score interval; without any trial the interval is all of 0..1.

    `successes` may be a fraction: a tie counts half.

    Raises:
        ValueError: `successes` outside 0..n.
    Source: E. B. Wilson, Probable inference, JASA 22 (1927).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: successes must lie in 0..n, got {successes} of {n}")
    if n == 0:
        return Estimate(None, 0, 0.0, 1.0)
    rate = successes / n
    return Estimate(rate, n, *wilson_ends(rate, n, z))


def wilson_ends(rate: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Return the ends of Wilson's interval for a rate on so many trials, of which there may be a fraction."""
    spread = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    centre, scale = rate + z * z / (2 * n), 1 + z * z / n
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return max(0.0, min(low, rate)), min(1.0, max(high, rate))  # rounding can miss an end by one bit


class Mean(NamedTuple):
    """A mean with the number of values and the ends of its 95% interval."""

    mean: float
    n: int
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Return the four figures under the names that metrics.json has."""
        return self._asdict()


def bounded_mean(values: Sequence[float], span: tuple[float, float], *, seed: int = 0, draws: int = 1000) -> Mean:
    """Return the mean of values that lie within `span`, with its 95% interval by the Bayesian bootstrap.

    Each draw weighs every value by an exponential, and half a value at each end of the span by a gamma variable: as Jeffreys'
    prior does for a rate, that leaves few values uncertain, however alike they are. What was drawn anew from the values alone
    would have no width for one.

    Raises:
        ValueError: no values, or one outside of the span.
    Source: D. B. Rubin, The Bayesian bootstrap, Annals of Statistics 9 (1981).
    """
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    if not len(data) or not (span[0] - 1e-9 <= data.min() and data.max() <= span[1] + 1e-9):
        raise ValueError(f"bounded_mean: needs values within {span[0]:g}..{span[1]:g}, got {list(values)[:5]}")
    rng, ends = np.random.default_rng(seed), np.asarray(span, dtype=np.float64)
    means = np.empty(draws)
    for place in range(draws):
        own, outer = rng.exponential(size=len(data)), rng.gamma(0.5, size=2)
        means[place] = (own @ data + outer @ ends) / (own.sum() + outer.sum())
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(data.mean())
    return Mean(mean, len(data), min(float(low), mean), max(float(high), mean))


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0, draws: int = 1000) -> Mean:
    """Return the ratio of two sums over the same units with its 95% percentile bootstrap interval; units are drawn whole.

    A loss per token over texts of different lengths is such a ratio: its tokens aren't independent, its texts are.

    Raises:
        ValueError: different numbers of them, none, or a denominator that isn't positive.
    """
    import numpy as np

    if len(numerators) != len(denominators) or not len(numerators) or min(denominators) <= 0:
        raise ValueError(f"bootstrap_ratio: needs pairs with positive denominators, got {len(numerators)}, {len(denominators)}")
    data = np.asarray([numerators, denominators], dtype=np.float64)
    rng = np.random.default_rng(seed)
    size = data.shape[1]
    sums = np.array([data[:, rng.integers(0, size, size)].sum(1) for _ in range(draws)])
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    total = data.sum(1)
    return Mean(float(total[0] / total[1]), size, float(low), float(high))


def paired_change(moved: Sequence[float], z: float = Z_95) -> dict[str, Any]:
    """Return the mean difference of pairs of shares, with an interval that stays wide where few pairs all agree.

    Source: A. Agresti and Y. Min, Simple improved confidence intervals for comparing matched proportions, Stat. Med. 24 (2005).
    """
    n = len(moved)
    gains, losses = sum(max(value, 0.0) for value in moved), sum(max(-value, 0.0) for value in moved)
    centre = (gains - losses) / (n + 2)
    half = z * sqrt(max(0.0, gains + losses + 1 - (gains - losses) ** 2 / (n + 2))) / (n + 2)
    mean = (gains - losses) / n
    return {"mean": mean, "n": n, "low": max(-1.0, min(mean, centre - half)), "high": min(1.0, max(mean, centre + half))}


class Rating(NamedTuple):
    """A player's Elo rating relative to the anchor, its 95% interval, and the comparisons it took part in."""

    elo: float
    low: float
    high: float
    n: int


class Comparison(NamedTuple):
    """One comparison of two players: `score` is the first one's share of the win, 0.5 a tie.

    Comparisons of one `group` (the same prompt) are drawn together in the bootstrap, since they aren't independent.
    """

    first: str
    second: str
    score: float
    group: str = ""


def bradley_terry(wins: np.ndarray, *, prior: float = 0.0, tolerance: float = 1e-9, max_steps: int = 10_000) -> np.ndarray:
    """Return maximum-likelihood log-strengths [..., M] float64 of zero mean from wins [..., M, M] (row beat column).

    `prior` adds that many virtual wins each way to every pair that met, which keeps a player who never lost finite.

    Raises:
        ValueError: a player lost or won every comparison (or met nobody) and `prior` is 0: no finite maximum exists.
    Source: D. R. Hunter, MM algorithms for generalized Bradley-Terry models, Annals of Statistics 32 (2004), eq. 3.
    """
    import numpy as np

    wins = np.asarray(wins, dtype=np.float64)
    met = wins + np.swapaxes(wins, -1, -2)
    wins = wins + prior * (met > 0)
    met = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(-1)
    if not (won > 0).all() or not (wins.sum(-2) > 0).all():
        raise ValueError("bradley_terry: a player won or lost all of its comparisons; give a prior above 0")
    strength = np.ones(won.shape)
    for _ in range(max_steps):
        pull = (met / (strength[..., :, None] + strength[..., None, :])).sum(-1)
        new = won / pull
        new /= np.exp(np.log(new).mean(-1, keepdims=True))
        change = np.abs(np.log(new / strength)).max(initial=0.0)
        strength = new
        if change < tolerance:
            break
    found: np.ndarray = np.log(strength)
    return found


def elo_ratings(
    comparisons: Sequence[Comparison], *, anchor: str, prior: float = 0.5, seed: int = 0, draws: int = 500
) -> dict[str, Rating]:
    """Return Elo ratings by player with `anchor` at 0 and 95% intervals from weighing whole groups anew.

    Each draw weighs every group by an exponential and every virtual win of the prior by a gamma variable, so that with the
    default prior the interval of two players is Jeffreys': one who won 20 of 20 is uncertain, as after few comparisons it
    should be. Players keep the order of their first appearance; those that no chain of comparisons joins to the anchor have
    no rating.

    Raises:
        ValueError: the anchor took part in no comparison.
    Source: D. B. Rubin, The Bayesian bootstrap, Annals of Statistics 9 (1981).
    """
    import numpy as np

    players = _joined(comparisons, anchor)
    if not players:
        raise ValueError(f"elo_ratings: the anchor must take part in a comparison, got {anchor!r}")
    met = [c for c in comparisons if c.first in players]
    table = _wins_by_group(met, {name: i for i, name in enumerate(players)})
    rng = np.random.default_rng(seed)
    zero = players.index(anchor)
    wins = table.sum(0)
    pairs = (wins + wins.T > 0)[None]
    trace = max(prior, 1e-6)  # keeps a pair finite that hardly weighs in a draw
    elo = _elo(wins + trace * pairs[0], zero)
    drawn = np.tensordot(rng.exponential(size=(draws, len(table))), table, axes=1)
    virtual = rng.gamma(prior, size=drawn.shape) if prior else np.zeros(drawn.shape)
    low, high = np.quantile(_elo(drawn + np.maximum(virtual, 1e-6) * pairs, zero), [0.025, 0.975], axis=0)
    found = zip(players, elo, low, high, strict=True)
    return {
        name: Rating(float(r), float(a), float(b), sum(name in (c.first, c.second) for c in met)) for name, r, a, b in found
    }


def _joined(comparisons: Sequence[Comparison], anchor: str) -> list[str]:
    """Return the players that a chain of comparisons joins to the anchor, in the order of their first appearance."""
    seen, front = set(), {anchor}
    while front:
        seen |= front
        front = {b for c in comparisons for a, b in ((c.first, c.second), (c.second, c.first)) if a in front} - seen
    return [name for name in dict.fromkeys(name for c in comparisons for name in (c.first, c.second)) if name in seen]


def _wins_by_group(comparisons: Sequence[Comparison], index: Mapping[str, int]) -> np.ndarray:
    """Return wins [groups, M, M] float64."""
    import numpy as np

    groups = {name: i for i, name in enumerate(dict.fromkeys(c.group for c in comparisons))}
    table = np.zeros((len(groups), len(index), len(index)))
    for c in comparisons:
        first, second, group = index[c.first], index[c.second], groups[c.group]
        table[group, first, second] += c.score
        table[group, second, first] += 1 - c.score
    return table


def _elo(wins: np.ndarray, zero: int) -> np.ndarray:
    theta = bradley_terry(wins)
    found: np.ndarray = (theta - theta[..., zero : zero + 1]) * ELO_PER_NAT
    return found


class ReliabilityBin(NamedTuple):
    """Predictions of one bin: their mean, the share of true outcomes, and how many they are."""

    low: float
    high: float
    predicted: float
    observed: float
    n: int


class Calibration(NamedTuple):
    """Expected calibration error (0..1) and the bins of the reliability figure; empty bins are left out."""

    error: float
    bins: tuple[ReliabilityBin, ...]


def calibration(predicted: Sequence[float], outcomes: Sequence[float], *, bins: int = 10) -> Calibration:
    """Return the expected calibration error over bins of equal width: the mean gap of prediction and outcome, weighted by size.

    `outcomes` are 0 or 1, or soft labels between. A prediction of exactly 1 belongs to the last bin.

    Raises:
        ValueError: different lengths, no predictions, or a prediction outside 0..1.
    Source: Guo et al., On calibration of modern neural networks, ICML 2017, eq. 3.
    """
    if len(predicted) != len(outcomes) or not len(predicted):
        raise ValueError(f"calibration: needs as many outcomes as predictions, got {len(predicted)} and {len(outcomes)}")
    if not all(0 <= p <= 1 for p in predicted):
        raise ValueError("calibration: predictions must lie in 0..1")
    found: dict[int, list[tuple[float, float]]] = {}
    for pair in zip(predicted, outcomes, strict=True):
        found.setdefault(min(int(pair[0] * bins), bins - 1), []).append(pair)
    table = tuple(_reliability_bin(i, found[i], bins) for i in sorted(found))
    error = sum(b.n * abs(b.predicted - b.observed) for b in table) / len(predicted)
    return Calibration(error, table)


def _reliability_bin(i: int, pairs: Sequence[tuple[float, float]], bins: int) -> ReliabilityBin:
    n = len(pairs)
    return ReliabilityBin(i / bins, (i + 1) / bins, sum(p for p, _ in pairs) / n, sum(y for _, y in pairs) / n, n)
