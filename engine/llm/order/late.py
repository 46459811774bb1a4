"""Which calls have been out for so much longer than most that another engine of the model is asked, too.

Owns the decision. Asks and counts nothing: the client does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

TIMES = 4.0
"""How many times as long as the median of those answered a call has to be out."""
LEAST_S = 2.0
"""How long it has to be out at least: what is over sooner isn't worth asking twice."""
KNOWN = 32
"""How many answers have to be known before their median says anything."""
SHARE = 0.05
"""How many calls are asked twice at most, of those answered: where all are late, something else is wrong."""
_LAST = 256


class Late:
    """What is known of how long calls take, and how many were asked twice."""

    def __init__(self) -> None:
        self.twice = 0
        self._answered = 0
        self._took_s: deque[float] = deque(maxlen=_LAST)

    def answered(self, seconds: float) -> None:
        """Take note of a call that was asked once and answered."""
        self._answered += 1
        self._took_s.append(seconds)

    def overdue(self, waited_s: Iterable[tuple[int, float]], room: int) -> list[int]:
        """Return which calls to ask again, of those by number that have waited so long, the longest first.

        `room` is how many the other engines can begin at once: a call asked twice never keeps another waiting.
        """
        if self._answered < KNOWN:
            return []
        limit_s = max(LEAST_S, TIMES * median(self._took_s))
        late = sorted(((waited, number) for number, waited in waited_s if waited > limit_s), reverse=True)
        left = int(SHARE * self._answered) - self.twice
        return [number for _, number in late[: max(0, min(room, left))]]
