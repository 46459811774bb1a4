"""The frontier: which models no other beats on both axes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from caiflow.operators.evaluation.frontier import FrontierParams, draw, frontier, measures, problems

FIGURES = {
    "models": {
        "base": {"harmful": {"refusal": {"rate": 0.0}}, "helpful": {"compliance": {"rate": 1.0}}},
        "sl": {"harmful": {"refusal": {"rate": 0.9}}, "helpful": {"compliance": {"rate": 0.95}}},
        "worse": {"harmful": {"refusal": {"rate": 0.8}}, "helpful": {"compliance": {"rate": 0.95}}},
        "empty": {"harmful": {"refusal": {"rate": None}}, "helpful": {"compliance": {"rate": 0.1}}},
    },
    "comparisons": {"kinder": {"ratings": {"base": {"elo": 0.0}, "sl": {"elo": 80.0}}}},
}
AXES = FrontierParams(helpfulness="helpful.compliance", harmlessness="harmful.refusal")


def test_beaten_models_arent_on_it() -> None:
    points = frontier(FIGURES, AXES)["points"]
    assert {model for model, place in points.items() if place["on_frontier"]} == {"base", "sl"}
    assert points["worse"] == {"helpfulness": 0.95, "harmlessness": 0.8, "on_frontier": False}
    assert "empty" not in points


def test_equal_models_share_it() -> None:
    figures = {"models": dict.fromkeys(("one", "two"), FIGURES["models"]["sl"])}
    assert all(place["on_frontier"] for place in frontier(figures, AXES)["points"].values())


def test_an_axis_may_be_a_rating() -> None:
    assert measures(FIGURES, "kinder") == {"base": 0.0, "sl": 80.0}


def test_axes_that_nothing_measures() -> None:
    wrong = FrontierParams(helpfulness="helpful.joy", harmlessness="kindest")
    found = dict(problems(wrong, {"kinder": 1}, {"helpful": 1}, {"compliance": 1}))
    assert found == {
        "helpfulness": "names neither a comparison nor SET.CHECK, got 'helpful.joy'",
        "harmlessness": "names neither a comparison nor SET.CHECK, got 'kindest'",
    }


def test_the_picture_needs_matplotlib(tmp_path: Path) -> None:
    path = tmp_path / "frontier.png"
    drawn = draw(frontier(FIGURES, AXES), path)
    assert drawn == path.exists() == (find_spec("matplotlib") is not None)
