"""Asking for what nobody else is asking for: a key is claimed, or its result awaited from whoever has it.

Owns the waiting. What is claimed and kept is the ledger's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import TypeVar

from caiflow.engine.store.ledger import Ledger

T = TypeVar("T")
PATIENCE_S = 600.0
"""How long another's work is awaited before it is done here as well: it may be frozen, and its locks with it."""
_NOTHING = nullcontext()
_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 0.5


@asynccontextmanager
async def claimed(
    ledger: Ledger, key: bytes, known: Callable[[], T | None], idle: AbstractContextManager[None] = _NOTHING
) -> AsyncIterator[T | None]:
    """Yield what the ledger has come to hold under a key, or None once the key is claimed here and its result to be made.

    `idle` is entered while another's work is awaited.
    """
    mine = ledger.claims.take(key)
    if not mine:
        with idle:
            mine = await _taken_or_known(ledger, key, known)
    try:
        ledger.catch_up()
        yield known()
    finally:
        if mine:
            ledger.claims.release(key)


async def _taken_or_known(ledger: Ledger, key: bytes, known: Callable[[], T | None]) -> bool:
    """Wait until the key can be claimed, and return True, or until its result is known or was awaited for too long."""
    until, pause_s = time.monotonic() + PATIENCE_S, _FIRST_LOOK_S
    while time.monotonic() < until:
        await asyncio.sleep(pause_s)
        pause_s = min(_LAST_LOOK_S, 1.5 * pause_s)
        ledger.catch_up()
        if known() is not None:
            return False
        if ledger.claims.take(key):
            return True
    return False
