"""Pictures of figures that are kept as data beside them: PNG files, drawn where matplotlib is installed.

Owns how they look. Measures nothing; the data is whole without a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

AHEAD, BEHIND, GUIDE = "#0072b2", "#8a8f99", "#b0b0b0"
"""Colours that people with any colour vision tell apart."""
_DPI = 150
_SMALLEST, _LARGEST = 20.0, 220.0
"""Areas of the smallest and the largest bin's mark, in square points."""


def can_draw() -> bool:
    """Return whether pictures can be drawn here (the extra `plots`)."""
    return find_spec("matplotlib") is not None


def draw_frontier(data: Mapping[str, Any], path: Path) -> bool:
    """Draw helpfulness against harmlessness as PNG and return True, or return False where matplotlib isn't installed.

    `data["points"]` has, by model, both figures, their intervals where known, and whether it is on the frontier.
    """
    if not can_draw() or not data["points"]:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    ahead = sorted((p["helpfulness"], p["harmlessness"]) for p in data["points"].values() if p["on_frontier"])
    if len(ahead) > 1:
        axes.plot(*zip(*ahead, strict=True), color=AHEAD, alpha=0.35, linewidth=1.5, zorder=1)
    for model, place in data["points"].items():
        _place(axes, model, place)
    for axis, name in ((axes.xaxis, "helpfulness"), (axes.yaxis, "harmlessness")):
        axis.set_label_text(f"{name} ({_source(name, data[name])})  →")
        values = [place[name] for place in data["points"].values()]
        if "." in data[name] and 0 <= min(values) <= max(values) <= 1:
            axis.set_major_formatter(lambda value, _: f"{value:.0%}" if -1e-9 <= value <= 1 + 1e-9 else "")
    axes.margins(0.12)
    _save(figure, path)
    return True


def _source(name: str, measure: str) -> str:
    """Return what an axis is measured by: the check on a set, or the ratings of a comparison."""
    group, _, check = measure.partition(".")
    if check:
        return f"{check} on {group}"
    return "Elo" if measure == name else f"Elo, {measure}"


def _place(axes: Any, model: str, place: Mapping[str, Any]) -> None:
    x, y = place["helpfulness"], place["harmlessness"]
    colour = AHEAD if place["on_frontier"] else BEHIND
    spread = {}
    for name, key, value in (("xerr", "helpfulness_interval", x), ("yerr", "harmlessness_interval", y)):
        if place.get(key):
            low, high = place[key]
            spread[name] = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(x, y, **spread, fmt="o", color=colour, ecolor=colour, elinewidth=0.8, capsize=2, markersize=7, zorder=2)
    axes.annotate(model, (x, y), xytext=(6, 6), textcoords="offset points", color=colour, fontsize=9)


def draw_reliability(bins: Sequence[Mapping[str, Any]], error: float, path: Path) -> bool:
    """Draw predicted against observed preferences as PNG and return True, or return False where matplotlib isn't installed.

    `bins` are those of `statistics.calibration`, `error` is its calibration error. A mark's area grows with its bin.
    Source: Guo et al., On calibration of modern neural networks, ICML 2017, figure 1.
    """
    if not can_draw() or not bins:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 5.8), dpi=_DPI, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[5, 1])
    most = max(one["n"] for one in bins)
    areas = [_SMALLEST + (_LARGEST - _SMALLEST) * one["n"] / most for one in bins]
    predicted, observed = ([one[name] for one in bins] for name in ("predicted", "observed"))
    upper.plot([0, 1], [0, 1], color=GUIDE, linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.plot(predicted, observed, color=AHEAD, linewidth=1, alpha=0.5)
    upper.scatter(predicted, observed, s=areas, color=AHEAD, zorder=2, label=f"this model (error {error:.3f})")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed share of preferences")
    upper.legend(loc="upper left", frameon=False, fontsize=9, markerscale=0.5)
    widths = [one["high"] - one["low"] for one in bins]
    lower.bar([one["low"] for one in bins], [one["n"] for one in bins], widths, align="edge", color=AHEAD, edgecolor="white")
    lower.set(xlabel="predicted probability of being preferred", ylabel="comparisons")
    _save(figure, path)
    return True


def _save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(str(path))
