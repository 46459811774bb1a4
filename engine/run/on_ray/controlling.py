"""What is asked of a run, told to its engines' processes again and again: one that is begun again knows nothing of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from caiflow.engine.store.controls import Controls

AGAIN_S = 1.0


class Controlling:
    """Tells engines what is asked of them, one call at a time to each: one that loads hears of it as soon as it can."""

    def __init__(self) -> None:
        self.controls = Controls()
        self._told: dict[int, tuple[dict[str, Any], float, Any]] = {}

    def tell(self, engines: Iterable[tuple[str, Sequence[Any]]]) -> None:
        """Tell each engine, by its model's name and processes, where it changed or was long ago."""
        import ray

        for model, actors in engines:
            asked = self.controls.of(model)
            for actor in actors:
                before, at, answer = self._told.get(id(actor), ({"paused": False}, 0.0, None))
                if answer is not None and not ray.wait([answer], timeout=0)[0]:
                    continue
                changed = asked != before
                if changed or (asked != {"paused": False} and time.monotonic() - at > AGAIN_S):
                    self._told[id(actor)] = asked, time.monotonic(), actor.control.remote(asked)
