"""Asking for what nobody else is asking for: a key is claimed, or its result awaited from whoever has it.

Owns the waiting. What is claimed and kept is the ledger's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

from caiflow.engine.store.ledger import Ledger

T = TypeVar("T")
PATIENCE_S = 600.0
"""How long another's work is awaited before it is done here as well: it may be frozen, and its locks with it."""
_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 0.5


class claimed(Generic[T]):  # noqa: N801  # reads as the context that it is
    """Yield what the ledger holds under a key, or None once the key is claimed here and its result to be made.

    `idle` is entered while another's work is awaited. A class, since a generator costs twice as much, once a call.
    """

    __slots__ = ("_idle", "_key", "_known", "_ledger", "_mine")

    def __init__(
        self,
        ledger: Ledger,
        key: bytes,
        known: Callable[[], T | None],
        idle: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._ledger, self._key, self._known, self._idle, self._mine = ledger, key, known, idle, False

    async def __aenter__(self) -> T | None:
        looked = self._ledger.changes
        found = self._known()
        if found is not None:
            return found
        self._mine = self._ledger.claims.take(self._key)
        if not self._mine:
            with self._idle():
                self._mine = await self._taken_or_known()
        try:
            self._ledger.catch_up()
            return self._known() if self._ledger.changes != looked else None
        except BaseException:
            self._release()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._mine:
            self._ledger.claims.release(self._key)

    async def _taken_or_known(self) -> bool:
        """Wait until the key can be claimed, and return True, or until its result is known or was awaited for too long."""
        until, pause_s = time.monotonic() + PATIENCE_S, _FIRST_LOOK_S
        while time.monotonic() < until:
            await asyncio.sleep(pause_s)
            pause_s = min(_LAST_LOOK_S, 1.5 * pause_s)
            self._ledger.catch_up()
            if self._known() is not None:
                return False
            if self._ledger.claims.take(self._key):
                return True
        return False
