"""What moves a judge: planted effects come back within their intervals, and none where nothing tells them."""

from __future__ import annotations

import math
import random

import pytest

from caiflow.operators.measures.effects import JudgedVote, effects


def judged(pairs: int, seed: int, *, soft: bool, **planted: float) -> list[JudgedVote]:
    """Return votes in both orders on pairs, by a judge whom the planted effects move."""
    dice = random.Random(seed)
    votes = []
    for pair in range(pairs):
        length, people = dice.gauss(0, 1), dice.choice([-1.0, 1.0])
        for side in (1, -1):
            weights = {"position": 1.0, "length": side * length, "people": side * people}
            p = 1 / (1 + math.exp(-sum(planted.get(name, 0.0) * weight for name, weight in weights.items())))
            votes.append(JudgedVote(str(pair), p if soft else float(dice.random() < p), weights))
    return votes


@pytest.mark.parametrize("soft", [True, False])
def test_planted_effects_come_back(soft: bool) -> None:
    planted = {"position": 0.4, "length": 0.8, "people": 1.0}
    found = effects(judged(300, 1, soft=soft, **planted))
    for name, value in planted.items():
        assert found[name]["low"] - 0.01 <= value <= found[name]["high"] + 0.01, (name, found[name])
        assert found[name]["value"] == pytest.approx(value, abs=0.01 if soft else 0.35)


def test_intervals_cover_what_was_planted_and_grow_with_fewer_pairs() -> None:
    covered = 0
    for seed in range(40):
        length = effects(judged(80, seed, soft=False, length=0.6), draws=80)["length"]
        covered += length["low"] <= 0.6 <= length["high"]
    assert covered >= 34, "95% of 40 draws, less three standard deviations"
    few, many = (effects(judged(n, 3, soft=False, length=0.6))["length"] for n in (30, 300))
    assert few["high"] - few["low"] > many["high"] - many["low"]


def test_an_unmoved_judge_has_no_effect() -> None:
    found = effects(judged(200, 5, soft=False))
    assert all(one["low"] < 0 < one["high"] for one in found.values())


def test_a_judge_who_always_takes_the_first_stays_finite() -> None:
    found = effects([JudgedVote(str(n), 1.0, {"position": 1.0}) for n in range(20)])
    assert 2 < found["position"]["value"] < 20
    assert math.isfinite(found["position"]["high"])


def test_what_nothing_tells_is_left_out() -> None:
    assert effects([]) == {}
    assert set(effects([JudgedVote("1", 0.7, {"position": 1.0, "own": 0.0})])) == {"position"}


def test_both_orders_by_hand() -> None:
    """A judge at 0.7 for the first of either order: log(0.7 / 0.3), were it not for the prior's slight pull towards 0."""
    votes = [JudgedVote(str(n), 0.7, {"position": 1.0}) for n in range(500)]
    assert effects(votes)["position"]["value"] == pytest.approx(math.log(0.7 / 0.3), abs=0.001)
