"""Where a server is and how it may be used. Asks nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caiflow.engine.llm.served.budget import Prices
from caiflow.engine.store.spending import Most

MOST_CALLS = 64
_UNBOUNDED, _FREE = Most(), Prices()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is and how it may be used; `key` never shows in its text."""

    base_url: str
    model: str
    address_only: bool = False
    """Whether `model` is what the server lists, since only its address was given."""
    key: str = ""
    timeout_s: float = 120.0
    most_calls: int = MOST_CALLS
    most: Most = _UNBOUNDED
    prices: Prices = _FREE
    spent: Path | None = None
    """Where what was spent is counted; None counts what this engine spends."""
    taught: Path | None = None
    """Where what the server teaches is kept, by which its answers count as another model's; None goes on with it."""
    continues: bool = False
    """Whether the server is known to go on with a turn that has begun."""
    by_hand: bool = False
    """Whether the user named the server, so that it may be asked wherever its name leads."""

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r})"

    @property
    def told(self) -> str:
        """The server and its model, as a user knows them."""
        return self.base_url if self.address_only else f"{self.model} at {self.base_url}"

    def blot(self, text: str) -> str:
        """Return `text` without the key."""
        return text.replace(self.key, "***") if self.key else text
