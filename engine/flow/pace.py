"""How long the steps of one chain have computed, and how long until they are through: the time left on the screen.

Steps of a chain share one stretch of time, so each is given its share of every second: that of the rows it had under way. What
a row costs is told by the rows that were computed, never by those out of the ledger. Asks and shows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

TRUSTED_FROM = 0.05
"""From this part of its rows on, a step's cost of a row is believed; more than are under way must have been computed, too."""


class Pace:
    """The clock of a chain: `begin` and `end` around whatever is done for one row of one step."""

    def __init__(self, steps: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.held: Callable[[], bool] = bool
        """Whether rows wait for what isn't work, as for an engine that loads: that time is no step's."""
        self._clock = clock
        self._busy_s = dict.fromkeys(steps, 0.0)
        self._under_way = dict.fromkeys(self._busy_s, 0)
        self._computed = dict.fromkeys(self._busy_s, 0)
        self._all = 0
        self._seen = clock()

    def begin(self, step: str) -> None:
        """Note that a row of the step is under way from now on."""
        self._share_out()
        self._under_way[step] += 1
        self._all += 1

    def end(self, step: str, *, computed: bool = True) -> None:
        """Note what became of it: computed, or found in the ledger."""
        self._share_out()
        self._under_way[step] -= 1
        self._all -= 1
        self._computed[step] += computed

    def busy_s(self, step: str) -> float:
        """Return the step's share of the seconds so far; those of all steps add up to the time that any row took."""
        self._share_out()
        return self._busy_s[step]

    def left_s(self, step: str, waiting: Mapping[str, int]) -> float | None:
        """Return the seconds until the step has no rows left; None where that can't be told yet.

        `waiting` has the rows, by step, that aren't finished or are still to come. What comes earlier in the chain must be done
        first; of what comes later, as much as rows get there meanwhile, since later steps go first.
        """
        self._share_out()
        left = 0.0
        for name, rows in waiting.items():
            ahead = min(rows, waiting[step])
            if ahead and not self._trusted(name, rows):
                return None
            left += ahead * self._cost_s(name, rows) if ahead else 0.0
        return left

    def _trusted(self, step: str, waiting: int) -> bool:
        computed = self._computed[step]
        return computed >= max(1, self._under_way[step], TRUSTED_FROM * (computed + waiting))

    def _cost_s(self, step: str, waiting: int) -> float:
        """Return the seconds that waiting rows will still cost: those under way are taken to be half through."""
        half = self._under_way[step] / 2
        return self._busy_s[step] / (self._computed[step] + half) * (waiting - half) / waiting

    def _share_out(self) -> None:
        now = self._clock()
        if self._all and not self.held():
            each = (now - self._seen) / self._all
            for step, rows in self._under_way.items():
                if rows:
                    self._busy_s[step] += rows * each
        self._seen = now
