"""Confidence sequences: cases by hand, and how often a sequence loses the truth when one looks after every trial."""

from __future__ import annotations

from random import Random

import pytest

from caiflow.operators.measures.sequence import anytime
from caiflow.operators.measures.statistics import wilson


def test_one_success_by_hand() -> None:
    """B(3/2, 1/2) / B(1/2, 1/2) is 1/2, so a rate p is in where 1/2 / p < 20."""
    assert anytime(1, 1) == (pytest.approx(1 / 40), 1.0)
    assert anytime(0, 1) == (0.0, pytest.approx(39 / 40))
    assert anytime(0, 0) == (0.0, 1.0)
    low, high = anytime(1, 2)  # B(3/2, 3/2) / B(1/2, 1/2) is 1/8: p (1 - p) > 1/160
    assert low * (1 - low) == pytest.approx(1 / 160)
    assert high == pytest.approx(1 - low)


def test_it_is_wider_than_one_look_and_gets_sharp() -> None:
    for successes, n in ((3, 10), (50, 100), (0, 30), (700, 1000)):
        low, high = anytime(successes, n)
        one = wilson(successes, n)
        assert low <= one.low <= one.high <= high
    assert (lambda ends: ends[1] - ends[0])(anytime(5000, 10_000)) < 0.04


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_looking_after_every_trial_loses_the_truth_in_5_percent_at_most(rate: float) -> None:
    lost = naive = 0
    for trial in range(100):
        rng, successes, out, out_naive = Random(trial), 0, False, False
        for n in range(1, 301):
            successes += rng.random() < rate
            if n % 5 == 0:
                low, high = anytime(successes, n)
                one = wilson(successes, n)
                out, out_naive = out or not low <= rate <= high, out_naive or not one.low <= rate <= one.high
        lost, naive = lost + out, naive + out_naive
    assert lost <= 5
    assert naive > 15, "which an interval for one look doesn't"


def test_shares_that_are_parts_of_a_success_are_taken() -> None:
    assert anytime(2.5, 5)[0] < 0.5 < anytime(2.5, 5)[1]
    with pytest.raises(ValueError, match=r"got 6 of 5"):
        anytime(6, 5)
