"""How many calls to a server may be under way, and when the next may leave.

Owns the adaptive limit (one more per round of successes, half after a refusal, as TCP does it) and the pauses while a server
refuses for being too many. Makes no call itself. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_FIRST = 8.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_LONGEST_ASKED_PAUSE_S = 120.0
"""The longest pause at a server's own word."""
_MANY = 10
"""Refusals in a row after which calls leave one by one, a second or more apart."""
_TOLD_AFTER_S = 5.0
_SILENT_AFTER_S = 20.0
"""From when on it is told that no call is answered: an answer may well take some seconds."""


class Pace:
    """Lets calls through while fewer than the limit are under way; the limit moves between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(_FIRST, float(most))
        self.under_way = 0
        self.answers = 0
        self._paused = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume_at = 0.0
        self._cut_at = 0.0
        self._fast_below = 0.0
        self._refusals = self._rounds = 0  # since the last answer
        self._refused_since = 0.0
        self._heard = time.monotonic()
        """When the server last said anything, or was first asked again."""

    async def enter(self) -> float:
        """Wait for leave to call; return the moment of leaving, which `refused` wants back. Calls leave in order of asking."""
        if not self.under_way:
            self._heard = time.monotonic()
        if self._waiting or not self._open():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._wake_later()
            await turn  # whoever wakes it has counted it as under way
        else:
            self.under_way += 1
        return time.monotonic()

    def control(self, *, paused: bool, most: int) -> None:
        """Let none leave while `paused`, else at most `most` at once."""
        self._paused, self.most = paused, most
        self.limit = min(self.limit, float(most))
        self._wake()

    def leave(self) -> None:
        """Say that a call has ended, whatever came of it."""
        self.under_way -= 1
        self._heard = time.monotonic()
        self._wake()

    def answered(self) -> None:
        """Raise the limit a little: by one after as many answers as the limit, faster up to half of what it once was."""
        self.answers += 1
        self._refusals = self._rounds = 0
        self.limit = min(self.most, self.limit + (1.0 if self.limit < self._fast_below else 1 / self.limit))

    def failed(self, started: float) -> bool:
        """Halve the limit, once for all the calls that were under way together; return whether this was the first of them."""
        if started < self._cut_at:
            return False
        self._fast_below = max(1.0, self.limit / 2)
        self.limit, self._cut_at = self._fast_below, time.monotonic()
        return True

    def refused(self, started: float, retry_after_s: float = 0.0) -> None:
        """Halve the limit and pause: as long as the server says, or else twice as long with every round of refusals."""
        now = time.monotonic()
        self._refused_since = self._refused_since if self._refusals else now
        self._refusals += 1
        pause_s = min(retry_after_s, _LONGEST_ASKED_PAUSE_S)
        if self.failed(started) and not pause_s:
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**self._rounds) * random.uniform(0.75, 1.25)
            self._rounds += 1
        if self._refusals >= _MANY:
            self.limit, pause_s = 1.0, max(1.0, pause_s)
        self._resume_at = max(self._resume_at, now + pause_s)

    def refused_for_s(self) -> float:
        """Return for how long the server has refused all calls for being too many; 0 where its last word was an answer."""
        return time.monotonic() - self._refused_since if self._refusals else 0.0

    def told(self, now: float | None = None) -> str:
        """Return how long the server has refused and when it is asked next, or is silent; nothing while that is short."""
        now = time.monotonic() if now is None else now
        refused_s, next_s = self.refused_for_s(), max(0.0, self._resume_at - now)
        if max(refused_s, next_s) < _TOLD_AFTER_S:
            silent_s = now - self._heard if self.under_way else 0.0
            return f"has answered none of {self.under_way} calls for {silent_s:.0f} s" if silent_s >= _SILENT_AFTER_S else ""
        return f"has refused {self._refusals} calls in a row, for {refused_s:.0f} s; it is asked again in {next_s:.0f} s"

    def _open(self) -> bool:
        return not self._paused and self.under_way < int(self.limit) and time.monotonic() >= self._resume_at

    def _wake(self) -> None:
        """Let as many go as there is room for."""
        room = 0 if self._paused else int(self.limit) - self.under_way
        while room > 0 and self._waiting and time.monotonic() >= self._resume_at:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self.under_way += 1
                room -= 1
        self._wake_later()

    def _wake_later(self) -> None:
        pause = self._resume_at - time.monotonic()
        if self._waiting and pause > 0:
            asyncio.get_running_loop().call_later(pause, self._wake)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the seconds that Retry-After asks for, given as a number or a date; 0 without one that can be read."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        import datetime

        return max(0.0, (parsedate_to_datetime(value) - datetime.datetime.now(datetime.UTC)).total_seconds())
    return 0.0
