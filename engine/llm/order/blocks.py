"""Prompts in the blocks of tokens that a prefix cache keeps, each known by all that stands before it.

Owns what has to be computed of prompts where each prefix is computed once: the least that any order of calls takes where the
cache holds all. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence


def block_hashes(ids: Sequence[int], block: int) -> list[int]:
    """Return what tells each full block of `block` tokens, and all before it, from others."""
    so_far, found = 0, []
    for end in range(block, len(ids) + 1, block):
        so_far = hash((so_far, tuple(ids[end - block : end])))
        found.append(so_far)
    return found


class Prefixes:
    """The blocks of `block` tokens that were computed so far."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._known: set[int] = set()

    def computed(self, ids: Sequence[int]) -> int:
        """Take a prompt's tokens in; return how many weren't in known blocks: one at least, which the answer comes of."""
        return max(self.learn(ids), 1)

    def learn(self, ids: Sequence[int]) -> int:
        """Take in the tokens of a prompt with its answer; return how many weren't in known blocks."""
        blocks = block_hashes(ids, self._block)
        new = sum(one not in self._known for one in blocks)
        self._known.update(blocks)
        return new * self._block + len(ids) % self._block
