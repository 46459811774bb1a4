"""What a client knows of its requests and of the engines that it gives them to.

Owns no choice: that is the client's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Link, Request


@dataclass(slots=True)
class Asked:
    """A request that waits for its answer; those of lower `priority` come first."""

    request: Request
    answer: asyncio.Future[Answer]
    priority: tuple[int, int]
    tries: int = 0
    since: float = 0.0
    """When an engine was last given it, by the loop's clock."""
    twice: bool = False
    """Whether two engines were given it."""

    def __lt__(self, other: Asked) -> bool:
        return self.priority < other.priority


@dataclass(slots=True)
class Replica:
    """One engine of a model, with what it was given."""

    link: Link
    in_flight: dict[int, Asked] = field(default_factory=dict)
    pending: list[Asked] = field(default_factory=list)
    """A heap of what rows ask that are at home here."""
    over: list[str] = field(default_factory=list)
    """Rows that were to ask on here, and won't."""
    room: int = 0
    up: bool = False
    """Whether it takes requests; not while it loads, or loads again."""
    lost: EngineError | None = None
    """Why it won't answer any more; None while it does."""
    busy: asyncio.Event = field(default_factory=asyncio.Event)

    def idle(self) -> bool:
        """Return whether it has less to do than it can do at once."""
        return len(self.in_flight) + len(self.pending) < self.link.capacity

    @property
    def moves(self) -> bool:
        """Whether its calls are to go to another process from now on; links that can't tell never move."""
        return bool(getattr(self.link, "moves", False))
