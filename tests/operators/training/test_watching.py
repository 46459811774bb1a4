"""What a curve tells: a gold score that turns though the reward doesn't is found where it was planted, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caiflow.operators.training.watching import Watched, gold, judged, onset, unparsable

STEPS = list(range(1, 41))


def curve(kind: str, seed: int) -> list[float]:
    """Return 40 points of a gold score with noise: flat, rising to a level, or rising to step 20 and falling from there."""
    shapes = {
        "flat": [0.5] * 40,
        "settling": [0.5 + 0.3 * min(step, 20) / 20 for step in STEPS],
        "turning": [0.5 + 0.3 * min(step, 20) / 20 - 0.3 * max(0, step - 20) / 20 for step in STEPS],
    }
    noise = np.random.default_rng(seed).normal(0, 0.06, 40)
    return [level + float(off) for level, off in zip(shapes[kind], noise, strict=True)]


@pytest.mark.parametrize("kind", ["flat", "settling"])
def test_chance_is_seldom_taken_for_a_fall(kind: str) -> None:
    alarms = sum(onset(STEPS, curve(kind, seed)) is not None for seed in range(200))
    assert alarms <= 0.08 * 200, "at most 5% but for the draw of the 200"


def test_a_planted_turn_is_found_near_where_it_is() -> None:
    found = [onset(STEPS, curve("turning", seed)) for seed in range(100)]
    near = [one for one in found if one and 15 <= one.step <= 30]
    assert len(near) >= 95


def test_it_is_no_exploit_where_what_is_learnt_fell_too() -> None:
    turning, rising = curve("turning", 1), [step / 40 for step in STEPS]
    assert onset(STEPS, turning, rising)
    assert onset(STEPS, turning, [0.5] * 40)
    assert onset(STEPS, turning, turning) is None
    assert onset(STEPS[:7], turning[:7]) is None, "too few points tell nothing"


def test_points_of_a_curve_come_to_figures() -> None:
    points: list[dict[str, Any]] = [
        {"loss": 0.1, "step": step, "rewards/g/mean": score, "rewards/r/mean": step, "judge/j/ties": 0.5, "unread/j": 0.25}
        for step, score in zip(STEPS, curve("turning", 1), strict=True)
    ]
    points += [{"judge/k/ties": 1.0, "judge/k/position_bias": -0.3, "principle/k/kind/share": 1.0, "unread/k": None}]
    told = gold(points, Watched("g", {"r": 1.0, "g": 0.0}), seed=0)
    assert 15 <= told["gold_onset"] <= 30
    assert told["gold_fall"] == pytest.approx(told["gold_best"] - told["gold_end"], abs=0.2)
    assert gold(points, Watched("g", {"r": -1.0}), seed=0)["gold_fall"] == 0, "less of what isn't wanted is learnt"
    assert gold(points, Watched(None, {}), seed=0) == {}
    found = judged(points)
    assert (found["ties"], found["position_bias"]) == (1.0, -0.3)
    assert found["judges"] == {
        "j": {"ties": 0.5},
        "k": {"ties": 1.0, "position_bias": -0.3, "by_principle": {"kind": {"share": 1.0}}},
    }
    assert unparsable(points) == {"unparsable": 0.25}
