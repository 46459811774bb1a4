"""Beginnings that many prompts share (few-shot examples, say), read once and kept.

Owns which beginnings are worth keeping and which rows may be read together after one. Imported on workers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import DynamicCache

_WORTH_KEEPING = 1024
"""Tokens that a beginning must spare at once for it to be read on its own."""
WORTH_SHARING = 32
"""Tokens per row below which a beginning isn't worth a group of its own."""
_KEPT_BYTES = 512 << 20
_KEPT = 16


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Token ids and their keys and values; any shorter beginning of it is as good. `cache` is a library's cache of one row."""

    ids: np.ndarray
    cache: Any
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Together:
    """Rows (by index) that share their first `shared` tokens with `prefix`; 0 and None where they share nothing worth it."""

    rows: list[int]
    prefix: Prefix | None = None
    shared: int = 0

    def repeated(self, rows: int) -> DynamicCache:
        """Return a cache in which each of `rows` rows has what they share."""
        cache = DynamicCache()
        if self.prefix is not None:
            for index, layer in enumerate(self.prefix.cache.layers):
                given = (tensor[:, :, : self.shared].expand(rows, -1, -1, -1) for tensor in (layer.keys, layer.values))
                cache.update(*given, index)
        return cache


class Prefixes:
    """Keeps beginnings, least recently used ones leaving first. `read` computes the cache of a beginning, given its ids."""

    def __init__(self, read: Callable[[Sequence[int]], tuple[Any, int]]) -> None:
        self._read = read
        self._kept: list[Prefix] = []

    def split(self, prompts: Sequence[Sequence[int]]) -> list[Together]:
        """Return the prompts' indices in groups, each with the beginning that its rows share; every row is in one group."""
        arrays = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
        self._learn(arrays)
        found: dict[int, list[tuple[int, int]]] = {}
        for index, array in enumerate(arrays):
            shared, prefix = self._best(array)
            found.setdefault(prefix if shared >= WORTH_SHARING else -1, []).append((shared, index))
        groups = [Together([index for _, index in found.pop(-1, [])])]
        for prefix, rows in found.items():
            groups += _even(self._kept[prefix], sorted(rows, reverse=True))
        self._kept = [*(p for i, p in enumerate(self._kept) if i not in found), *(self._kept[i] for i in found)]
        return [group for group in groups if group.rows]

    def spared(self, ids: Sequence[int]) -> int:
        """Return how many of a prompt's first tokens need not be read, since they are kept."""
        return self._best(np.asarray(ids))[0]

    def _best(self, array: np.ndarray) -> tuple[int, int]:
        """Return the most tokens shared with a kept beginning, the row's last one left out, and that beginning's index."""
        return max(((common(array[:-1], kept.ids), index) for index, kept in enumerate(self._kept)), default=(0, -1))

    def _learn(self, arrays: Sequence[np.ndarray]) -> None:
        ordered = sorted(arrays, key=lambda array: array.tolist())
        for run, shared in _runs(ordered):
            shared = min(shared, *(len(array) - 1 for array in run))
            if (len(run) - 1) * (shared - self._best(run[0])[0]) >= _WORTH_KEEPING:
                ids = run[0][:shared]
                cache, size = self._read(ids.tolist())
                self._kept.append(Prefix(ids, cache, size))
        while len(self._kept) > _KEPT or sum(kept.size_bytes for kept in self._kept) > _KEPT_BYTES:
            self._kept.pop(0)


def common(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two sequences begin with in common."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


def _runs(ordered: Sequence[np.ndarray]) -> list[tuple[list[np.ndarray], int]]:
    """Cut sorted prompts where neighbours share less than half of what they share with their other neighbours."""
    links = [common(one, other) for one, other in pairwise(ordered)]
    runs: list[tuple[list[np.ndarray], int]] = []
    run, shared = list(ordered[:1]), 0
    for index, link in enumerate(links):
        beside = max(links[max(index - 1, 0) : index + 2])
        if 2 * link >= beside and link >= WORTH_SHARING:
            shared = min(shared, link) if len(run) > 1 else link
            run.append(ordered[index + 1])
        else:
            runs.append((run, shared))
            run, shared = [ordered[index + 1]], 0
    runs.append((run, shared))
    return [(rows, common_tokens) for rows, common_tokens in runs if len(rows) > 1]


def _even(prefix: Prefix, rows: Sequence[tuple[int, int]]) -> list[Together]:
    """Cut rows, (shared, index) with most shared first, so that no row gives up more than a quarter of what it shares."""
    groups: list[Together] = []
    while rows:
        taken = [index for shared, index in rows if 4 * shared >= 3 * rows[0][0]]
        groups.append(Together(taken, prefix, rows[len(taken) - 1][0]))
        rows = rows[len(taken) :]
    return groups
