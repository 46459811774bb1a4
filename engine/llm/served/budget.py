"""The spending cap: leave for each call, and what it came to.

Owns prices and the waiting for calls under way, which may leave room for another. The sum is the store's (spending.py), so that
it holds over replicas, restarts and runs. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import math
from typing import NamedTuple

from caiflow.engine.errors import EngineError
from caiflow.engine.store.spending import Account, Most, Spent

_FIELDS = {"calls": "max_calls", "tokens": "max_tokens_total", "micros": "max_cost"}


class Prices(NamedTuple):
    """What a million tokens cost, of prompts and of answers."""

    prompt: float = 0.0
    completion: float = 0.0


def price(prompt_tokens: int, completion_tokens: int, prices: Prices) -> Spent:
    """Return what one call of so many tokens comes to."""
    micros = prompt_tokens * prices.prompt + completion_tokens * prices.completion
    return Spent(1, prompt_tokens + completion_tokens, math.ceil(micros))


class Budget:
    """Gives leave for calls while the cap allows; what is under way counts with the most it may take."""

    def __init__(self, account: Account, most: Most = Most(), prices: Prices = Prices()) -> None:
        self._account = account
        self._most = most
        self._prices = prices
        self._under_way = 0
        self._changed = asyncio.Event()

    def control(self, most: Most) -> None:
        """Hold to another cap from now on."""
        self._most = most
        self._changed.set()

    async def hold(self, prompt_tokens: int, completion_tokens: int) -> Spent:
        """Take leave for one call of at most so many tokens, waiting while own calls under way may yet leave enough.

        Raises:
            EngineError: kind `spending_cap`: the cap doesn't allow the call any more.
            StoreError: what was spent can't be counted.
        """
        held = self.of(prompt_tokens, completion_tokens)
        while True:
            spent, above = self._account.take(held, self._most)
            if not above:
                self._under_way += 1
                return held
            if not self._under_way:
                raise self._capped(spent, above)
            self._changed.clear()
            await self._changed.wait()

    def settle(self, held: Spent, used: Spent) -> None:
        """Replace what a call held by what it came to."""
        self._under_way -= 1
        self._account.take(used.minus(held))
        self._changed.set()

    def of(self, prompt_tokens: int, completion_tokens: int) -> Spent:
        """Return what one call of so many tokens comes to."""
        return price(prompt_tokens, completion_tokens, self._prices)

    def _capped(self, spent: Spent, above: str) -> EngineError:
        place = Spent._fields.index(above)
        scale, unit = (1e6, "of the money") if above == "micros" else (1, above)
        used, cap = (f"{(values[place] or 0) / scale:.12g}" for values in (spent, self._most))
        return EngineError(
            f"the spending cap leaves no room for another call: {used} of {cap} {unit} are used"
            + (f", by all runs of this spec (counted in {self._account.path})" if self._account.path else ""),
            f"raise {_FIELDS[above]} in the model's entry",
            kind="spending_cap",
        )
