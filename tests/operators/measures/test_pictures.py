"""Pictures: drawn from data alone, with every point on them, and left out where matplotlib isn't installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caiflow.operators.measures.pictures import AHEAD, BEHIND, draw_frontier, draw_reliability
from caiflow.operators.measures.statistics import calibration

POINTS: dict[str, Any] = {
    "base": {"helpfulness": 1.0, "harmlessness": 0.02, "on_frontier": True, "helpfulness_interval": [0.94, 1.0]},
    "sl_cai": {"helpfulness": 0.95, "harmlessness": 0.9, "on_frontier": True, "harmlessness_interval": [0.8, 0.95]},
    "worse": {"helpfulness": 0.9, "harmlessness": 0.5, "on_frontier": False},
}
DATA = {"helpfulness": "helpful.no_refusal_phrase", "harmlessness": "harmful.refusal_phrase", "points": POINTS}


def colours(path: Path) -> set[tuple[int, ...]]:
    """Return the colours in a PNG, as 8-bit RGB."""
    image = pytest.importorskip("matplotlib.image", reason="pictures need matplotlib").imread(path)
    return {tuple(round(255 * float(value)) for value in pixel[:3]) for row in image for pixel in row}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_the_frontier_shows_models_ahead_and_behind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    assert draw_frontier(DATA, tmp_path / "f.png")
    assert {rgb(AHEAD), rgb(BEHIND)} <= colours(tmp_path / "f.png")
    ahead = {**DATA, "points": {name: place for name, place in POINTS.items() if name != "worse"}}
    draw_frontier(ahead, tmp_path / "g.png")
    assert rgb(BEHIND) not in colours(tmp_path / "g.png")


def test_ratings_and_a_single_model_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    rated = {"base": {"helpfulness": 0.0, "harmlessness": 130.0, "on_frontier": True, "helpfulness_interval": [0.0, 0.0]}}
    assert draw_frontier({"helpfulness": "helpful", "harmlessness": "harmless", "points": rated}, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def test_reliability_is_drawn_from_its_bins(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    found = calibration([0.1, 0.2, 0.7, 0.9], [0, 0.4, 0.5, 1])
    bins = [{"low": b.low, "high": b.high, "predicted": b.predicted, "observed": b.observed, "n": b.n} for b in found.bins]
    assert draw_reliability(bins, found.error, tmp_path / "r.png")
    assert rgb(AHEAD) in colours(tmp_path / "r.png")
    assert not draw_reliability([], 0.0, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_nothing_is_drawn_without_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "from caiflow.operators.measures import pictures\n"
        "pictures.find_spec = lambda name: None if name == 'matplotlib' else found(name)\n"
        f"from pathlib import Path\nprint(pictures.draw_frontier({DATA!r}, Path({str(tmp_path)!r}) / 'f.png'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert list(tmp_path.iterdir()) == []
