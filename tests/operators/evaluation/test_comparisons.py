"""Comparisons of models: what becomes of the others where the anchor has no answer."""

from __future__ import annotations

from typing import Any

from caiflow.operators.evaluation.comparisons import figures
from caiflow.operators.evaluation.health import measures


def met(first: str, second: str, uid: int) -> dict[str, Any]:
    met_in = {"first": first, "second": second, "set": "s", "uid": str(uid), "failed": None}
    return {**met_in, "score": 1.0, "p_a": [0.9, 0.2], "unparsable_votes": 0, "moved": []}


def test_models_that_met_each_other_but_never_the_anchor_have_their_win_rates_and_a_note() -> None:
    found = figures([met("b", "c", uid) for uid in range(4)], "a", 0.5, seed=0)
    assert (found["win_rates"]["b"]["c"]["rate"], found["win_rates"]["c"]["b"]["rate"], found["n"]) == (1.0, 0.0, 4)
    assert (found["ratings"], found["unrated"]) == ({}, ["b", "c"])
    (unrated,) = (measure for measure in measures(()) if measure.name == "unrated")
    assert unrated.figure is not None
    assert unrated.figure({"comparisons": {"c": found}}) == 2


def test_nothing_compared_has_no_figures() -> None:
    assert figures([{**met("a", "b", 0), "failed": "lost"}], "a", 0.5, seed=0) == {
        "win_rates": {}, "ratings": {}, "unrated": [], "n": 0,
    }  # fmt: skip
