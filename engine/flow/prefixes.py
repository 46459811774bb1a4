"""What has to be computed of prompts where each prefix is computed once, however many share it.

An engine keeps what it computed in blocks of tokens, each known by all that stands before it (vLLM's automatic prefix caching).
Knows no engine: it is the least that any order of calls takes where the cache holds all.
"""

from __future__ import annotations

from collections.abc import Iterable


class Prefixes:
    """The blocks of `block` tokens that were computed so far."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._known: set[int] = set()

    def computed(self, ids: Iterable[int]) -> int:
        """Take a prompt's tokens in; return how many weren't in known blocks: one at least, which the answer comes of."""
        return max(self.learn(ids), 1)

    def learn(self, ids: Iterable[int]) -> int:
        """Take in the tokens of a prompt with its answer; return how many weren't in known blocks."""
        given, so_far, new = tuple(ids), 0, 0
        for start in range(0, len(given), self._block):
            block = given[start : start + self._block]
            so_far = hash((so_far, block))
            if len(block) < self._block or so_far not in self._known:
                new += len(block)
            if len(block) == self._block:
                self._known.add(so_far)
        return new
