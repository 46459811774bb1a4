"""Helpfulness against harmlessness: where each model stands, and which ones no other beats on both.

Owns the data of that figure and, where matplotlib is installed, its picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from caiflow.engine.operator import Strict


class FrontierParams(Strict):
    """Two axes of the figure: each is a comparison's name (its ratings) or SET.CHECK (its rates)."""

    helpfulness: str
    """What is drawn to the right; more is better."""
    harmlessness: str
    """What is drawn upwards; more is better."""


def measures(figures: Mapping[str, Any], axis: str) -> dict[str, float]:
    """Return an axis's figure by model; models that have none are left out."""
    if axis in figures.get("comparisons", {}):
        return {name: rating["elo"] for name, rating in figures["comparisons"][axis]["ratings"].items()}
    name, _, check = axis.partition(".")
    found = {model: sets.get(name, {}).get(check, {}).get("rate") for model, sets in figures["models"].items()}
    return {model: rate for model, rate in found.items() if rate is not None}


def problems(
    params: FrontierParams, comparisons: Mapping[str, Any], sets: Mapping[str, Any], checks: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield (axis, message) for each axis that nothing measures."""
    for axis in ("helpfulness", "harmlessness"):
        value = getattr(params, axis)
        name, _, check = value.partition(".")
        if value not in comparisons and (name not in sets or check not in checks):
            yield axis, f"names neither a comparison nor SET.CHECK, got {value!r}"


def frontier(figures: Mapping[str, Any], params: FrontierParams) -> dict[str, Any]:
    """Return each model's place on both axes and whether it is on the frontier."""
    x, y = measures(figures, params.helpfulness), measures(figures, params.harmlessness)
    places = {model: (x[model], y[model]) for model in x if model in y}
    return {
        "helpfulness": params.helpfulness,
        "harmlessness": params.harmlessness,
        "points": {
            model: {
                "helpfulness": a,
                "harmlessness": b,
                "on_frontier": not any(_beats(other, (a, b)) for other in places.values()),
            }
            for model, (a, b) in places.items()
        },
    }


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def draw(data: Mapping[str, Any], path: Path) -> bool:
    """Draw the figure as PNG and return True, or return False where matplotlib isn't installed."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=f"helpfulness ({data['helpfulness']})", ylabel=f"harmlessness ({data['harmlessness']})")
    for model, place in data["points"].items():
        colour = "tab:blue" if place["on_frontier"] else "tab:gray"
        axes.scatter(place["helpfulness"], place["harmlessness"], color=colour)
        axes.annotate(model, (place["helpfulness"], place["harmlessness"]), xytext=(4, 4), textcoords="offset points")
    FigureCanvasAgg(figure).print_png(str(path))
    return True
