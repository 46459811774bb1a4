"""The order of the rows under `train_sampling_strategy: group_by_length`: random batches of rows of like length.

Owns the lengths and the order. The libraries' own sampler takes the lengths from `input_ids` alone, which pairs don't have,
and its order from the process's random state, of which a training that is resumed in a later epoch has another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

GROUPING = 2
"""Raised where rows come in another order for the same seed."""
_POOL = 50
"""Batches whose rows are sorted together."""


def lengths(data: Dataset) -> list[int]:
    """Return the tokens of each row, of a pair's those of its longer sequence; nothing where rows aren't tokens yet."""
    found = {name: [len(ids) for ids in data[name]] for name in data.column_names if name.endswith("_ids")}
    if "input_ids" in found:
        return found["input_ids"]
    if not {"chosen_ids", "rejected_ids"} <= found.keys():
        return []
    before = found.get("prompt_ids", [0] * len(data))
    return [head + max(pair) for head, *pair in zip(before, found["chosen_ids"], found["rejected_ids"], strict=True)]


class Grouped:
    """Yields the places of all rows, batch after batch: rows of like length together, batches shuffled, anew each epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of that epoch, whatever was yielded before."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        import numpy as np

        dice = np.random.default_rng((self._seed, self._epoch))
        rows = dice.permutation(len(self._lengths)).tolist()
        pool = self._batch_size * _POOL
        pools = (sorted(rows[start : start + pool], key=self._lengths.__getitem__) for start in range(0, len(rows), pool))
        alike = list(chain.from_iterable(pools))
        left_over = len(rows) % self._batch_size
        where = int(dice.integers(len(rows) - left_over + 1))  # so that few rows, too, have other batches in each epoch
        last, alike[where : where + left_over] = alike[where : where + left_over], []
        batches = [alike[start : start + self._batch_size] for start in range(0, len(alike), self._batch_size)]
        for place in dice.permutation(len(batches)):
            yield from batches[place]
        yield from last
