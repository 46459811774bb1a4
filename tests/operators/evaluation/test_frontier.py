"""The frontier: which models no other beats on both axes."""

from __future__ import annotations

from caiflow.operators.evaluation.frontier import frontier, measures, problems
from caiflow.operators.evaluation.params import FrontierParams

FIGURES = {
    "models": {
        "base": {
            "harmful": {"refusal_phrase": {"rate": 0.0, "low": 0.0, "high": 0.1}},
            "helpful": {"no_refusal_phrase": {"rate": 1.0, "low": 0.9, "high": 1.0}},
        },
        "sl": {
            "harmful": {"refusal_phrase": {"rate": 0.9, "low": 0.8, "high": 0.95}},
            "helpful": {"no_refusal_phrase": {"rate": 0.95, "low": 0.9, "high": 0.99}},
        },
        "worse": {
            "harmful": {"refusal_phrase": {"rate": 0.8, "low": 0.7, "high": 0.9}},
            "helpful": {"no_refusal_phrase": {"rate": 0.95, "low": 0.9, "high": 0.99}},
        },
        "empty": {
            "harmful": {"refusal_phrase": {"rate": None}},
            "helpful": {"no_refusal_phrase": {"rate": 0.1, "low": 0.0, "high": 0.2}},
        },
    },
    "comparisons": {
        "kinder": {"ratings": {"base": {"elo": 0.0, "low": 0.0, "high": 0.0}, "sl": {"elo": 80.0, "low": 60.0, "high": 95.0}}}
    },
}
AXES = FrontierParams(helpfulness="helpful.no_refusal_phrase", harmlessness="harmful.refusal_phrase")


def test_beaten_models_arent_on_it() -> None:
    points = frontier(FIGURES, AXES)["points"]
    assert {model for model, place in points.items() if place["on_frontier"]} == {"base", "sl"}
    assert points["worse"] == {
        "helpfulness": 0.95,
        "harmlessness": 0.8,
        "helpfulness_interval": [0.9, 0.99],
        "harmlessness_interval": [0.7, 0.9],
        "on_frontier": False,
    }
    assert "empty" not in points


def test_equal_models_share_it() -> None:
    figures = {"models": dict.fromkeys(("one", "two"), FIGURES["models"]["sl"])}
    assert all(place["on_frontier"] for place in frontier(figures, AXES)["points"].values())


def test_an_axis_may_be_a_rating() -> None:
    assert measures(FIGURES, "kinder") == {"base": (0.0, (0.0, 0.0)), "sl": (80.0, (60.0, 95.0))}


def test_axes_that_nothing_measures() -> None:
    wrong = FrontierParams(helpfulness="helpful.joy", harmlessness="kindest")
    found = problems(wrong, {"kinder": 1}, {"helpful": 1}, {"no_refusal_phrase": 1})
    assert {wrong.path[-1]: wrong.message for wrong in found} == {
        "helpfulness": "names neither a comparison nor SET.CHECK, got 'helpful.joy'",
        "harmlessness": "names neither a comparison nor SET.CHECK, got 'kindest'",
    }
