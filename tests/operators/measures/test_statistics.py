"""Intervals, ratings and calibration: hand-computed cases, reference libraries, and what must hold for any input."""

from __future__ import annotations

from math import inf, isclose, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.operators.measures.probability import binary_entropy, normalise
from caiflow.operators.measures.statistics import (
    ELO_PER_NAT,
    Comparison,
    Estimate,
    bootstrap_ratio,
    bounded_mean,
    bradley_terry,
    calibration,
    elo_ratings,
    wilson,
)

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 2: centre (0.8 + 0.2) / 1.4, half width 2 * sqrt(0.016 + 0.01) / 1.4
    found = wilson(8, 10, z=2.0)
    assert (found.rate, found.n) == (0.8, 10)
    assert found.low == pytest.approx(1 / 1.4 - 2 * 0.026**0.5 / 1.4)
    assert found.high == pytest.approx(1 / 1.4 + 2 * 0.026**0.5 / 1.4)


@given(counts)
def test_wilson_agrees_with_scipy(case: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")
    successes, n = case
    reference = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson(successes, n)
    assert found.low == pytest.approx(reference.low, abs=1e-12)
    assert found.high == pytest.approx(reference.high, abs=1e-12)


@given(counts)
def test_wilson_mirrors_when_success_and_failure_swap(case: tuple[int, int]) -> None:
    successes, n = case
    one, other = wilson(successes, n), wilson(n - successes, n)
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)
    assert 0 <= one.low <= successes / n <= one.high <= 1


def test_wilson_without_trials_knows_nothing() -> None:
    assert wilson(0, 0) == Estimate(None, 0, 0.0, 1.0)


@pytest.mark.parametrize("successes", [-1, 4])
def test_wilson_refuses_impossible_counts(successes: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.n"):
        wilson(successes, 3)


def test_a_bounded_mean_of_rights_and_wrongs_has_jeffreys_interval() -> None:
    """Of values at the ends of the span alone, what is drawn is a rate from the posterior, Beta(k + 1/2, n - k + 1/2)."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")
    for hits, n in ((0, 1), (0, 12), (12, 12), (7, 12)):
        found = bounded_mean([4.0] * hits + [0.0] * (n - hits), (0.0, 4.0), seed=1, draws=8000)
        low, high = (4 * end for end in stats.beta.interval(0.95, hits + 0.5, n - hits + 0.5))
        assert found.low == pytest.approx(min(low, found.mean), abs=0.06), (hits, n)
        assert found.high == pytest.approx(max(high, found.mean), abs=0.06), (hits, n)


def test_a_bounded_mean_covers_the_truth_however_few_the_values_are() -> None:
    dice = np.random.default_rng(5)
    for n in (1, 2, 5, 20):
        found = [bounded_mean(4 * dice.beta(0.3, 1.2, n), (0.0, 4.0), seed=i, draws=200) for i in range(200)]
        assert sum(one.low <= 0.8 <= one.high for one in found) >= 0.9 * 200, n


def test_a_bounded_means_interval_is_near_the_normal_one_of_many_values() -> None:
    values = list(np.random.default_rng(3).uniform(1.0, 2.0, 400))
    found = bounded_mean(values, (0.0, 4.0), seed=1, draws=2000)
    half = 1.96 * float(np.std(values)) / 20
    assert (found.mean, found.n) == (pytest.approx(np.mean(values)), 400)
    assert (found.low, found.high) == (pytest.approx(found.mean - half, abs=0.02), pytest.approx(found.mean + half, abs=0.02))
    assert found == bounded_mean(values, (0.0, 4.0), seed=1, draws=2000)


@pytest.mark.parametrize("values", [[], [4.5], [-0.1, 1.0], [float("nan")]])
def test_a_bounded_mean_of_nothing_or_of_what_is_beyond_its_span_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"within 0\.\.4"):
        bounded_mean(values, (0.0, 4.0))


def test_a_ratio_is_that_of_the_sums() -> None:
    found = bootstrap_ratio([6.0, 2.0], [2, 6])
    assert (found.mean, found.n) == (1.0, 2)
    assert (found.low, found.high) == (pytest.approx(1 / 3), pytest.approx(3.0))


def test_a_ratio_with_equal_denominators_is_the_mean() -> None:
    values = list(np.random.default_rng(3).normal(1.0, 2.0, 400))
    found = bootstrap_ratio([4 * value for value in values], [4.0] * 400, seed=2)
    half = 1.96 * float(np.std(values)) / 20
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == (pytest.approx(found.mean - half, abs=0.03), pytest.approx(found.mean + half, abs=0.03))


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [0]), ([1.0], [1, 2])])
def test_a_ratio_of_nothing_is_refused(above: list[float], below: list[float]) -> None:
    with pytest.raises(ValueError, match="positive denominators"):
        bootstrap_ratio(above, below)


@pytest.mark.parametrize(("p", "bits"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0), (0.25, 2 - 0.75 * log(3) / log(2))])
def test_entropy(p: float, bits: float) -> None:
    assert binary_entropy(p) == pytest.approx(bits)


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=9), st.floats(-20, 20))
def test_shares_sum_to_one_and_ignore_a_common_shift(values: list[float], shift: float) -> None:
    shares = normalise({str(i): v for i, v in enumerate(values)})
    shifted = normalise({str(i): v + shift for i, v in enumerate(values)})
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == pytest.approx(list(shifted.values()))


def test_shares_of_impossible_choices_are_equal() -> None:
    assert normalise({"A": -inf, "B": -inf}) == {"A": 0.5, "B": 0.5}
    assert normalise({"A": log(0.03), "B": log(0.01)}) == pytest.approx({"A": 0.75, "B": 0.25})


def test_two_players_have_the_odds_of_their_wins() -> None:
    theta = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]))
    assert theta[0] - theta[1] == pytest.approx(log(3))


def test_bradley_terry_is_the_maximum_of_its_likelihood() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is the reference")
    wins = np.array([[0, 7, 2, 5], [3, 0, 6, 1], [4, 2, 0, 8], [1, 3, 2, 0]], dtype=float)

    def loss(free: np.ndarray) -> float:
        theta = np.concatenate([[0.0], free])
        return float((wins * np.logaddexp(0, theta[None, :] - theta[:, None])).sum())

    reference = np.concatenate([[0.0], optimize.minimize(loss, np.zeros(3), tol=1e-12).x])
    found = bradley_terry(wins)
    assert found - found[0] == pytest.approx(reference, abs=1e-5)


def test_bradley_terry_takes_a_batch() -> None:
    one, other = np.array([[0.0, 3.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [5.0, 0.0]])
    both = bradley_terry(np.stack([one, other]))
    assert both == pytest.approx(np.stack([bradley_terry(one), bradley_terry(other)]), abs=1e-8)


def test_bradley_terry_needs_a_prior_where_somebody_always_won() -> None:
    wins = np.array([[0.0, 5.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="give a prior"):
        bradley_terry(wins)
    theta = bradley_terry(wins, prior=0.5)
    assert theta[0] - theta[1] == pytest.approx(log(5.5 / 0.5))


def _games(first: str, second: str, wins: int, losses: int) -> list[Comparison]:
    scores = [1.0] * wins + [0.0] * losses
    return [Comparison(first, second, score, f"{first}{second}{i}") for i, score in enumerate(scores)]


def test_elo_by_hand() -> None:
    # 3 to 1 odds are 400 * log10(3) = 190.8 points
    found = elo_ratings(_games("base", "better", 25, 75), anchor="base", prior=0)
    assert found["base"].elo == 0
    assert found["base"].low == found["base"].high == 0
    assert found["better"].elo == pytest.approx(190.85, abs=0.01)
    assert found["better"].low < 190 < found["better"].high
    assert found["better"].n == 100


def test_elo_of_players_that_met_only_through_a_third() -> None:
    games = _games("a", "b", 10, 30) + _games("b", "c", 10, 30)
    for prior in (0, 0.5):
        found = elo_ratings(games, anchor="a", prior=prior)
        assert found["b"].elo == pytest.approx(ELO_PER_NAT * log((30 + prior) / (10 + prior)), rel=1e-4)
        assert found["c"].elo == pytest.approx(2 * found["b"].elo, rel=1e-4)


def test_elo_interval_covers_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(5), 0
    for _ in range(60):
        wins = int(rng.binomial(80, 0.64))
        found = elo_ratings(_games("x", "y", wins, 80 - wins), anchor="y", prior=0, draws=200)["x"]
        covered += found.low <= 100 <= found.high  # 100 points are a win rate of 0.64
    assert covered >= 51


@pytest.mark.parametrize("wins", [0, 20])
def test_elo_of_one_who_always_won_or_lost_has_jeffreys_interval(wins: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")
    found = elo_ratings(_games("x", "y", wins, 20 - wins), anchor="y", draws=4000)["x"]
    low, high = stats.beta(wins + 0.5, 20.5 - wins).ppf([0.025, 0.975])
    near, far = (low, found.low) if wins else (high, found.high)
    assert far == pytest.approx(ELO_PER_NAT * log(near / (1 - near)), rel=0.05)
    assert found.low < found.elo < found.high
    assert found.high - found.low > 500


def test_elo_of_players_that_nothing_joins_to_the_anchor_is_unknown() -> None:
    games = _games("a", "b", 3, 2) + _games("c", "d", 4, 1)
    assert list(elo_ratings(games, anchor="b")) == ["a", "b"]
    assert list(elo_ratings([*games, *_games("d", "a", 1, 1)], anchor="b")) == ["a", "b", "c", "d"]


def test_elo_groups_are_drawn_together() -> None:
    alone = [Comparison("x", "y", float(i % 3 > 0), str(i)) for i in range(60)]
    grouped = [Comparison("x", "y", float(i % 3 > 0), str(i % 3)) for i in range(60)]
    wide, narrow = elo_ratings(grouped, anchor="y")["x"], elo_ratings(alone, anchor="y")["x"]
    assert wide.elo == pytest.approx(narrow.elo)
    assert wide.high - wide.low > narrow.high - narrow.low


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.floats(0, 1)), min_size=4, max_size=20))
def test_elo_doesnt_depend_on_who_is_named_first(games: list[tuple[str, str, float]]) -> None:
    given_order = [Comparison(f, s, score, str(i)) for i, (f, s, score) in enumerate(games) if f != s]
    if not given_order:
        return
    swapped = [Comparison(c.second, c.first, 1 - c.score, c.group) for c in given_order]
    anchor = given_order[0].first
    one, other = elo_ratings(given_order, anchor=anchor, draws=5), elo_ratings(swapped, anchor=anchor, draws=5)
    assert all(isclose(one[name].elo, other[name].elo, abs_tol=1e-3) for name in one)


def test_elo_refuses_an_anchor_that_never_played() -> None:
    with pytest.raises(ValueError, match="got 'c'"):
        elo_ratings(_games("a", "b", 1, 1), anchor="c")


def test_calibration_by_hand() -> None:
    # bin 0.2..0.4: mean 0.3, observed 0.5; bin 0.8..1: mean 0.9, observed 1: (2 * 0.2 + 2 * 0.1) / 4
    found = calibration([0.25, 0.35, 0.8, 1.0], [0, 1, 1, 1], bins=5)
    assert found.error == pytest.approx(0.15)
    assert [(b.low, b.n, b.observed) for b in found.bins] == [(0.2, 2, 0.5), (0.8, 2, 1.0)]


def test_a_calibrated_prediction_has_no_error() -> None:
    assert calibration([0.25] * 4, [0, 0, 0, 1]).error == 0
    assert calibration([0.7, 0.2], [0.7, 0.2]).error == pytest.approx(0)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=50))
def test_calibration_bins_hold_every_prediction(pairs: list[tuple[float, int]]) -> None:
    found = calibration([p for p, _ in pairs], [y for _, y in pairs])
    assert sum(b.n for b in found.bins) == len(pairs)
    assert 0 <= found.error <= 1


@pytest.mark.parametrize(("predicted", "outcomes"), [([], []), ([0.5], []), ([1.2], [1])])
def test_calibration_refuses_nonsense(predicted: list[float], outcomes: list[float]) -> None:
    with pytest.raises(ValueError, match="calibration:"):
        calibration(predicted, outcomes)
