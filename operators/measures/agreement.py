"""How far a grader agrees with people, and what people's labels on some rows make of a grader's rate on all.

Owns the formulas and nothing else: it reads no rows and asks no models. Deterministic given its seed. numpy is imported where
it is used, so that importing this module stays cheap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any, NamedTuple

from caiflow.operators.measures.statistics import Z_95, Estimate, wilson, wilson_ends


class Figure(NamedTuple):
    """A figure on so many rows with the ends of its 95% interval; None where the rows don't tell it."""

    value: float | None
    n: int
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the four figures under the names that metrics.json has."""
        return self._asdict()


def kappa(found: Sequence[bool], labels: Sequence[bool], *, seed: int = 0, draws: int = 2000) -> Figure:
    """Return Cohen's kappa of two verdicts on the same rows: agreement beyond that of chance, as a share of what is beyond.

    The interval has the middle 95% of kappa over tables drawn around the one found, with half a row added to each cell: it is
    uncertain at full agreement too, as after few rows it should be. None where chance alone agrees fully.

    Raises:
        ValueError: different lengths.
    Source: J. Cohen, A coefficient of agreement for nominal scales, 1960; for the interval Jeffreys' prior on the four cells.
    """
    import numpy as np

    pairs = Counter(zip(map(bool, found), map(bool, labels), strict=True))
    table = np.array([pairs[cell] for cell in ((True, True), (True, False), (False, True), (False, False))], dtype=float)
    value = float(_kappas(table[None])[0]) if len(pairs) > 1 else float("nan")
    if np.isnan(value):
        return Figure(None, len(labels), None, None)
    drawn = _kappas(np.random.default_rng(seed).dirichlet(table + 0.5, draws))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(value, len(labels), min(float(low), value), max(float(high), value))


def _kappas(tables: Any) -> Any:
    """Return the kappa of each table [..., 4]: both, the first alone, the second alone, neither; nan where chance is all."""
    import numpy as np

    shares = tables / tables.sum(-1, keepdims=True)
    both, first, second, neither = np.moveaxis(shares, -1, 0)
    chance = (both + first) * (both + second) + (second + neither) * (first + neither)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1, (both + neither - chance) / (1 - chance), np.nan)


def auc(scores: Sequence[float], labels: Sequence[bool]) -> Figure:
    """Return the area under the ROC curve: how often a labelled row scores above one that isn't, equal scores counting half.

    None where all labels are alike. The interval is of the score kind, so that full separation of a few rows stays uncertain.

    Raises:
        ValueError: different lengths.
    Source: the variance is that of Hanley and McNeil, Radiology 143 (1982), with the interval of R. G. Newcombe, Statistics in
    Medicine 25 (2006), part 2, method 5.
    """
    if len(scores) != len(labels):
        raise ValueError(f"auc: needs a label for each score, got {len(scores)} scores and {len(labels)} labels")
    ups = sum(map(bool, labels))
    downs = len(labels) - ups
    if not ups or not downs:
        return Figure(None, len(labels), None, None)
    ranks = _ranks(scores)
    won = sum(rank for rank, label in zip(ranks, labels, strict=True) if label) - ups * (ups + 1) / 2
    area = won / (ups * downs)
    return Figure(area, len(labels), 1 - _highest(1 - area, ups, downs), _highest(area, ups, downs))


class AtRecall(NamedTuple):
    """The rate of rows without the label that score at `bound` or above, where so many of those with it do."""

    others: Estimate
    bound: float | None
    recall: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Return the figures under the names that metrics.json has."""
        return {**self.others.as_dict(), "bound": self.bound, "recall": self.recall.as_dict()}


def false_positives(scores: Sequence[float], labels: Sequence[bool], *, recall: float) -> AtRecall:
    """Return the rate of false positives at the highest bound that finds this share (0..1] of the labelled rows at least.

    Rows without the label have no part in choosing the bound, so that Wilson's interval of their rate holds for it. How sure it
    is that the bound finds as many of other rows, the interval of `recall` says. Without a labelled row there is no bound.

    Raises:
        ValueError: different lengths, or a recall outside of (0..1].
    """
    if len(scores) != len(labels) or not 0 < recall <= 1:
        raise ValueError(f"false_positives: {len(scores)} scores, {len(labels)} labels, a recall of {recall}")
    ups = sorted((score for score, label in zip(scores, labels, strict=True) if label), reverse=True)
    downs = [score for score, label in zip(scores, labels, strict=True) if not label]
    if not ups:
        return AtRecall(wilson(0, 0), None, wilson(0, 0))
    bound = ups[ceil(recall * len(ups) - 1e-9) - 1]
    found = sum(score >= bound for score in ups)
    return AtRecall(wilson(sum(score >= bound for score in downs), len(downs)), bound, wilson(found, len(ups)))


def _ranks(scores: Sequence[float]) -> list[float]:
    """Return each score's rank from 1, equal ones sharing the mean of theirs."""
    counts = Counter(scores)
    rank_of, before = {}, 0
    for score in sorted(counts):
        rank_of[score] = before + (counts[score] + 1) / 2
        before += counts[score]
    return [rank_of[score] for score in scores]


def _highest(area: float, ups: int, downs: int) -> float:
    """Return the largest area, up to 1, that is within 1.96 of its own standard deviations of the one found; by bisection."""
    extra = (ups + downs) / 2 - 1

    def within(true: float) -> bool:
        spread = true * (1 - true) * (1 + extra * (1 - true) / (2 - true) + extra * true / (1 + true)) / (ups * downs)
        return true - area <= Z_95 * sqrt(spread)

    low, high = area, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def corrected(labels: Sequence[float], graded: Sequence[float], others: Sequence[float]) -> Estimate:
    """Return the rate that people would find: their labels on some rows, and a grader's verdicts on those and on others.

    `labels` and `graded` are of the same rows, drawn at random from all; `others` are the verdicts without a label; all lie in
    0..1. With weight w the rate is mean(labels) + w (mean(others) - mean(graded)); its variance is
    var(labels - w graded) / n + w^2 var(others) / N. The weight makes that least: a grader that says nothing about the labels
    gets 0, which leaves the labels alone. The interval is Wilson's for as many rows as have that variance. `n` counts labels.

    Raises:
        ValueError: other than one verdict for each label, or under two labels.
    Source: Angelopoulos et al., Prediction-powered inference (arXiv 2301.09633), for a mean; the weight is that of
    Angelopoulos, Duchi and Zrnic, PPI++ (arXiv 2311.01453).
    """
    import numpy as np

    given, here, there = (np.asarray(values, dtype=np.float64) for values in (labels, graded, others))
    if len(given) != len(here) or len(given) < 2:
        raise ValueError(f"corrected: needs two labels and a verdict for each, got {len(given)} and {len(here)}")
    if len(there) < 2:
        return wilson(float(given.sum()), len(given))
    spread = np.concatenate([here, there]).var(ddof=1)
    shared = float(np.cov(given, here)[0, 1] / spread) if spread else 0.0
    weight = min(max(shared, 0.0), 1.0) * len(there) / (len(given) + len(there))
    rate = float(np.clip(given.mean() + weight * (there.mean() - here.mean()), 0, 1))
    variance = float((given - weight * here).var(ddof=1) / len(given) + weight**2 * there.var(ddof=1) / len(there))
    worth = rate * (1 - rate) / variance if variance else 0.0
    rows = min(worth, len(given) + len(there)) if worth >= 1 else len(given)
    return Estimate(rate, len(given), *wilson_ends(rate, rows))
