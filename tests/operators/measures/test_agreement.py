"""Agreement with people: worked tables, scipy, and simulations in which the truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from caiflow.operators.measures.agreement import auc, corrected, false_positives, kappa
from caiflow.operators.measures.statistics import wilson


def table(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    cells = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    found, labels = zip(*cells, strict=True)
    return list(found), list(labels)


def test_kappa_of_worked_tables() -> None:
    # 20 + 15 of 50 agree (0.7); chance: 0.5 * 0.6 + 0.5 * 0.4 = 0.5; so (0.7 - 0.5) / 0.5
    assert kappa(*table(20, 5, 10, 15)).value == pytest.approx(0.4)
    assert kappa(*table(10, 0, 0, 10)).value == 1.0
    assert kappa(*table(0, 10, 10, 0)).value == -1.0
    assert kappa(*table(25, 25, 25, 25)).value == 0.0


def test_kappa_of_one_kind_of_row_is_unknown() -> None:
    assert kappa(*table(12, 0, 0, 0))[:2] == (None, 12)
    assert kappa(*table(0, 0, 0, 3))[:2] == (None, 3)
    assert kappa([], []).value is None


def test_kappa_at_full_agreement_is_uncertain() -> None:
    few, many = kappa(*table(5, 0, 0, 5)), kappa(*table(500, 0, 0, 500))
    assert few.low is not None
    assert many.low is not None
    assert (few.high, many.high) == (1.0, 1.0)
    assert few.low < 0.75 < 0.98 < many.low


def test_intervals_of_kappa_cover_what_is_planted() -> None:
    cells = np.array([0.3, 0.1, 0.15, 0.45])
    true = (0.75 - (0.4 * 0.45 + 0.6 * 0.55)) / (1 - (0.4 * 0.45 + 0.6 * 0.55))
    rng = np.random.default_rng(5)
    found = [kappa(*table(*rng.multinomial(60, cells)), draws=400) for _ in range(400)]
    assert 0.92 <= np.mean([f.low <= true <= f.high for f in found]) <= 0.98


def test_auc_is_that_of_mann_and_whitney() -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(1)
    scores = [*np.round(rng.normal(1, 1, 40), 1), *np.round(rng.normal(0, 1, 55), 1)]  # rounded, so that some are equal
    labels = [True] * 40 + [False] * 55
    wins = mannwhitneyu(scores[:40], scores[40:]).statistic
    assert auc(scores, labels).value == pytest.approx(wins / (40 * 55))
    turned = auc([-score for score in scores], labels)
    straight = auc(scores, labels)
    assert (turned.value, turned.low, turned.high) == pytest.approx((1 - straight.value, 1 - straight.high, 1 - straight.low))


def test_auc_of_full_separation_is_uncertain_and_of_one_kind_unknown() -> None:
    few, many = (auc([*[1.0] * n, *[0.0] * n], [True] * n + [False] * n) for n in (5, 500))
    assert (few.value, few.high, many.value) == (1.0, 1.0, 1.0)
    assert few.low < 0.75 < 0.98 < many.low
    assert auc([0.1, 0.9], [True, True]).value is None
    with pytest.raises(ValueError, match="a label for each"):
        auc([0.1], [True, False])


def test_intervals_of_auc_cover_what_is_planted() -> None:
    rng = np.random.default_rng(2)
    true = 0.7602  # Phi(1 / sqrt 2): normal scores one standard deviation apart
    labels = [True] * 30 + [False] * 30
    found = [auc([*rng.normal(1, 1, 30), *rng.normal(0, 1, 30)], labels) for _ in range(500)]
    assert 0.92 <= np.mean([f.low <= true <= f.high for f in found]) <= 0.98


def test_false_positives_at_a_recall_by_hand() -> None:
    scores = [0.9, 0.8, 0.7, 0.2, *[0.95, 0.7, 0.6, 0.1, 0.0]]
    labels = [True] * 4 + [False] * 5
    most = false_positives(scores, labels, recall=0.75)  # three of four score 0.7 or more, and so do 0.95 and the equal 0.7
    assert (most.bound, most.recall.rate, most.others) == (0.7, 0.75, wilson(2, 5))
    every = false_positives(scores, labels, recall=0.76)  # takes the fourth, at 0.2
    assert (every.bound, every.recall.rate, every.others) == (0.2, 1.0, wilson(3, 5))
    assert false_positives([0.5] * 9, labels, recall=0.1)[:2] == (wilson(5, 5), 0.5)
    assert false_positives(scores[4:], labels[4:], recall=0.9).as_dict()["rate"] is None
    assert false_positives(scores[:4], labels[:4], recall=0.3).as_dict() | {"recall": None} == {
        "rate": None, "n": 0, "low": 0.0, "high": 1.0, "bound": 0.8, "recall": None
    }  # fmt: skip
    with pytest.raises(ValueError, match="2 scores, 1 labels"):
        false_positives([0.1, 0.2], [True], recall=0.5)


def test_false_positives_are_what_every_bound_gives_by_counting() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        scores, labels = np.round(rng.normal(size=40), 1), rng.random(40) < 0.4
        found = false_positives(scores.tolist(), labels.tolist(), recall=0.8)
        right = max(b for b in scores if (scores[labels] >= b).mean() >= 0.8)
        assert found.bound == right
        assert found.others.rate == pytest.approx((scores[~labels] >= right).mean())


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.5, 0.8])
def test_corrected_intervals_cover_the_truth_that_the_graders_own_miss(rate: float) -> None:
    """A grader that finds 85% of what is there and 25% of what isn't, on 60 prompts beside 40 labelled ones."""
    rng = np.random.default_rng(round(100 * rate))
    right = naive = 0
    bias = []
    for _ in range(1000):
        truth = rng.random(100) < rate
        graded = np.where(truth, rng.random(100) < 0.85, rng.random(100) < 0.25).astype(float)
        found = corrected(truth[:40].astype(float), graded[:40], graded[40:])
        raw = wilson(graded[40:].sum(), 60)
        right += found.low <= rate <= found.high
        naive += raw.low <= rate <= raw.high
        bias.append(found.rate - rate)
    assert 930 <= right <= 970
    assert naive < 900
    assert abs(np.mean(bias)) < 0.01


def test_labels_on_some_of_the_prompts_correct_the_rate_on_all() -> None:
    """The same grader on 60 prompts, 40 of which have a label themselves."""
    rng = np.random.default_rng(9)
    right, widths, alone = 0, [], []
    for _ in range(1000):
        truth = rng.random(60) < 0.3
        graded = np.where(truth, rng.random(60) < 0.85, rng.random(60) < 0.25).astype(float)
        found = corrected(truth[:40].astype(float), graded[:40], graded[40:])
        right += found.low <= 0.3 <= found.high
        widths.append(found.high - found.low)
        low, high = wilson(truth[:40].sum(), 40)[2:]
        alone.append(high - low)
    assert 930 <= right <= 970
    assert np.mean(widths) < np.mean(alone)


def test_a_perfect_grader_counts_as_labels_and_a_blind_one_as_nothing() -> None:
    labels, others = [1.0] * 10 + [0.0] * 30, [1.0] * 20 + [0.0] * 40
    assert corrected(labels, labels, others).rate == pytest.approx(30 / 100, abs=0.005)
    blind = corrected(labels, [0.0, 1.0] * 20, others)
    assert blind.rate == pytest.approx(0.25)
    assert blind.high - blind.low == pytest.approx(wilson(10, 40).high - wilson(10, 40).low, abs=0.01)


def test_labels_that_are_all_alike_stay_uncertain() -> None:
    found = corrected([0.0] * 40, [0.0] * 40, [0.0] * 60)
    assert (found.rate, found.low, found.high) == (0.0, 0.0, pytest.approx(wilson(0, 40).high))
    assert corrected([1.0] * 5, [1.0] * 5, []).low == pytest.approx(wilson(5, 5).low)
    with pytest.raises(ValueError, match="two labels"):
        corrected([1.0], [1.0], [0.0])
