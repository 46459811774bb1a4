"""Passing over a source's rows twice: kept in memory where they are few, and a sample of them that is drawn on the way.

Never reads records.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from caiflow.operators.formats.rows import BadRow, Row
from caiflow.operators.mixing.draws import fraction

_IN_MEMORY = 20_000


class Drawn:
    """The uids of a sample of `size` among those offered, all where it is None; it depends on the seed and the uids alone."""

    def __init__(self, size: int | None, seed: int) -> None:
        self._size, self._seed = size, seed
        self._lowest: list[float] = []  # a heap of the lowest ranks, negated

    def offer(self, uid: str) -> None:
        """Take one more uid into the draw."""
        if self._size is None:
            return
        if len(self._lowest) < self._size:
            heapq.heappush(self._lowest, -self._rank(uid))
        else:
            heapq.heappushpop(self._lowest, -self._rank(uid))

    def __contains__(self, uid: str) -> bool:
        return self._size is None or (bool(self._lowest) and self._rank(uid) <= -self._lowest[0])

    def _rank(self, uid: str) -> float:
        return fraction("sample", self._seed, uid)


class Replay:
    """What `start` yields, as often as wanted; kept in memory where the first reading ended within a bound."""

    def __init__(self, start: Callable[[], Iterator[Row | BadRow]]) -> None:
        self._start = start
        self._kept: list[Row | BadRow] | None = None

    def __iter__(self) -> Iterator[Row | BadRow]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Row | BadRow] | None = []
        for row in self._start():
            yield row
            if kept is not None:
                kept.append(row)
                kept = kept if len(kept) <= _IN_MEMORY else None
        self._kept = kept
