"""What is asked of a run while it goes on, in one small file of its folder: that it rests, other limits of models.

Owns the file and its form. Who asks writes it whole, the run's driver looks at it; what the driver took up is in run.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from caiflow.engine.store.disk import write_atomic

CONTROL = "control.json"
"""The file's name."""
LIMITS = ("concurrency", "max_calls", "max_tokens_total", "max_cost")
"""What may be said of a model anew, in the words of its entry."""


@dataclass(frozen=True, slots=True)
class Controls:
    """What is asked of a run: whether it rests, and by model the limits that hold in place of its entry's."""

    paused: bool = False
    models: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, model: str) -> dict[str, Any]:
        """Return what is asked of one model's engines."""
        return {"paused": self.paused, **self.models.get(model, {})}

    def told(self) -> str:
        """Return it in words."""
        limits = [f"{name}: {key} {value:g}" for name, found in self.models.items() for key, value in found.items()]
        return "; ".join(["paused by ctl" if self.paused else "goes on", *limits])

    def as_json(self) -> dict[str, Any]:
        """Return the file's content."""
        return asdict(self)


def read_controls(run_dir: Path) -> Controls:
    """Return what is asked of a run; nothing where there is no such file, or none that can be read."""
    try:
        found = json.loads((run_dir / CONTROL).read_text(encoding="utf-8"))
        limits = {name: {key: float(value[key]) for key in LIMITS if key in value} for name, value in found["models"].items()}
        return Controls(bool(found["paused"]), limits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Controls()


def write_controls(run_dir: Path, controls: Controls) -> None:
    """Ask something of a run."""
    write_atomic(run_dir / CONTROL, json.dumps(controls.as_json(), indent=1) + "\n")
