"""Helpfulness against harmlessness: where each model stands, and which ones no other beats on both.

Owns the data of that figure; its picture is drawn by `engine.figures`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from caiflow.engine.errors import Finding
from caiflow.operators.evaluation.params import FrontierParams

Spread = tuple[float, float]
"""The ends of a figure's 95% interval."""


def measures(figures: Mapping[str, Any], axis: str) -> dict[str, tuple[float, Spread]]:
    """Return an axis's figure and its interval by model; models that have none are left out."""
    if axis in figures.get("comparisons", {}):
        ratings = figures["comparisons"][axis]["ratings"]
        return {name: (rating["elo"], (rating["low"], rating["high"])) for name, rating in ratings.items()}
    name, _, check = axis.partition(".")
    found = {model: sets.get(name, {}).get(check, {}) for model, sets in figures["models"].items()}
    return {model: (one["rate"], (one["low"], one["high"])) for model, one in found.items() if one.get("rate") is not None}


def problems(
    params: FrontierParams, comparisons: Collection[str], sets: Collection[str], checks: Collection[str]
) -> Iterator[Finding]:
    """Yield each axis that nothing measures."""
    for axis in ("helpfulness", "harmlessness"):
        value = getattr(params, axis)
        name, _, check = value.partition(".")
        if value not in comparisons and (name not in sets or check not in checks):
            message = f"names neither a comparison nor SET.CHECK, got {value!r}"
            yield Finding(("frontier", axis), message, "write a comparison's name, or SET.CHECK")


def frontier(figures: Mapping[str, Any], params: FrontierParams) -> dict[str, Any]:
    """Return each model's place on both axes with its intervals, and whether it is on the frontier."""
    x, y = measures(figures, params.helpfulness), measures(figures, params.harmlessness)
    places = {model: (x[model][0], y[model][0]) for model in x if model in y}
    return {
        "helpfulness": params.helpfulness,
        "harmlessness": params.harmlessness,
        "points": {
            model: {
                "helpfulness": a,
                "harmlessness": b,
                "helpfulness_interval": list(x[model][1]),
                "harmlessness_interval": list(y[model][1]),
                "on_frontier": not any(_beats(other, (a, b)) for other in places.values()),
            }
            for model, (a, b) in places.items()
        },
    }


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other
