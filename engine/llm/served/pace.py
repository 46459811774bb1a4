"""How many calls to a server may be under way, and how much they may cost in all.

Owns the adaptive limit (one more per round of successes, half after a refusal, as TCP does it) and the spending cap.
Makes no call itself. Both belong to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from caiflow.engine.errors import EngineError

_FIRST = 8.0
_LONGEST_PAUSE_S = 120.0


class Pace:
    """Lets calls through while fewer than the limit are under way; the limit moves between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(_FIRST, float(most))
        self.under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume_at = 0.0
        self._cut_at = 0.0

    async def enter(self) -> float:
        """Wait for leave to call; return the moment of leaving, which `refused` wants back. Calls leave in order of asking."""
        if self._waiting or not self._open():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._wake_later()
            await turn  # whoever wakes it has counted it as under way
        else:
            self.under_way += 1
        return time.monotonic()

    def leave(self) -> None:
        """Say that a call has ended, whatever came of it."""
        self.under_way -= 1
        self._wake()

    def answered(self) -> None:
        """Raise the limit a little: by one after as many answers as the limit."""
        self.limit = min(self.most, self.limit + 1 / self.limit)

    def refused(self, started: float, retry_after_s: float = 0.0) -> None:
        """Halve the limit, once for all the calls that were under way together, and pause where the server says how long."""
        now = time.monotonic()
        if started >= self._cut_at:
            self.limit, self._cut_at = max(1.0, self.limit / 2), now
        if retry_after_s > 0:
            self._resume_at = max(self._resume_at, now + min(retry_after_s, _LONGEST_PAUSE_S))

    def _open(self) -> bool:
        return self.under_way < int(self.limit) and time.monotonic() >= self._resume_at

    def _wake(self) -> None:
        """Let as many go as there is room for."""
        room = int(self.limit) - self.under_way
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


class Budget:
    """Counts calls and tokens against their caps; None is no cap. What is under way counts with the most it may take."""

    def __init__(self, max_calls: int | None, max_tokens: int | None) -> None:
        self.calls = 0
        self.tokens = 0
        self._max_calls = max_calls
        self._max_tokens = max_tokens
        self._held = 0
        self._changed = asyncio.Event()

    async def hold(self, tokens: int) -> None:
        """Take leave for one call of at most `tokens`, waiting while calls under way may yet leave enough.

        Raises:
            EngineError: kind `spending_cap`: the cap doesn't allow the call any more.
        """
        while True:
            if self._max_calls is not None and self.calls >= self._max_calls:
                raise _capped("calls", self.calls, self._max_calls, "max_calls")
            if self._max_tokens is None or self.tokens + self._held + tokens <= self._max_tokens:
                break
            if not self._held:
                raise _capped("tokens", self.tokens, self._max_tokens, "max_tokens_total")
            self._changed.clear()
            await self._changed.wait()
        self.calls += 1
        self._held += tokens

    def settle(self, held: int, used: int) -> None:
        """Replace what a call held by what it used."""
        self._held -= held
        self.tokens += used
        self._changed.set()


def _capped(what: str, used: int, cap: int, name: str) -> EngineError:
    return EngineError(
        f"the spending cap leaves no room for another call: {used} of {cap} {what} are used",
        f"raise {name} in the model's entry",
        kind="spending_cap",
    )
