"""How long an engine is at one piece of work, and from when on it counts as hanging.

Owns that rule. The engine's thread writes, any other may read. Ends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_S = 180.0
"""How long an engine may be at its first passes over tokens, which may compile and read the weights from the disk."""
_FIRST_TOKEN_S = 0.1
"""Seconds more that the first passes may take for each of their tokens: what reads ten a second is of no use."""
_FIRST = 2
"""Passes by which nothing is measured: the first one of a prompt, and the first that writes."""
_LONGER = 10
"""How many times the longest work so far, and the time that its tokens would take at the pace so far, a piece may take."""


class Pulse:
    """Told by an engine where each piece of work begins: a forward pass, the rendering of prompts.

    How long a piece may take depends on the machine, the model and its tokens, so it is measured against what was seen here:
    a prompt of a thousand times the tokens may take ten thousand times as long. `first_s` is for the first passes, before
    anything was seen; an engine that computes nothing here passes 0.
    """

    def __init__(self, first_s: float = FIRST_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_s = first_s
        self._clock = clock
        self._work: tuple[float, int] | None = None
        self._passes = 0
        self._longest_s = 0.0
        self._most_tokens = 0
        self._token_s = 0.0

    def beat(self, tokens: int = 0) -> None:
        """Say that the work before, if any, is done, and that the next begins: a pass over `tokens` tokens, or another kind."""
        self.rest()
        self._work = self._clock(), tokens

    def rest(self) -> None:
        """Say that the work before is done and that there is nothing to do."""
        if self._work is None:
            return
        (begun, tokens), self._work = self._work, None
        took_s = self._clock() - begun
        if self._first_s and self._passes < _FIRST:
            self._passes += tokens > 0
            return
        self._longest_s = max(self._longest_s, took_s)
        if tokens and tokens >= self._most_tokens:
            self._most_tokens, self._token_s = tokens, took_s / tokens

    def hangs_for_s(self, patience_s: float, times: float = 1.0) -> float:
        """Return for how long it has been at one piece of work, in seconds, where that is more than it may be; else 0.

        It may always be at it for `patience_s`; `times` stretches that and every other limit.
        """
        work = self._work
        if work is None:
            return 0.0
        begun, tokens = work
        taken_s = self._clock() - begun
        return taken_s if taken_s > times * max(patience_s, self._may_take_s(tokens)) else 0.0

    def _may_take_s(self, tokens: int) -> float:
        if self._first_s and (self._passes < _FIRST or not self._most_tokens):
            return self._first_s + _FIRST_TOKEN_S * tokens
        return _LONGER * max(self._longest_s, self._token_s * tokens)
