"""Keys and values of the rows that decode together: a slot per row, reused when the row has finished.

Owns one buffer per layer. A row's tokens lie in its slot from column 0 on, so that newcomers of any length join without moving
anyone. Knows nothing of requests or sampling. Imported on workers only, since it imports torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Columns allocated beyond the longest row, and by which a full buffer grows at least."""


class SlotLayer(DynamicLayer):  # type: ignore[misc]  # the library has no types
    """One layer's buffers, [slots, heads, columns, D]; `update` writes each row's new token at that row's own place."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Write one token per row ([slots, heads, 1, D]) and return the columns in use."""
        slots = self._slots
        self.keys[slots.every, :, slots.last] = key_states[:, :, 0]
        self.values[slots.every, :, slots.last] = value_states[:, :, 0]
        return self.keys[:, :, : slots.width], self.values[:, :, : slots.width]

    def get_seq_length(self) -> int:
        """Return the tokens before the one about to be fed."""
        return self._slots.width - 1

    def get_mask_sizes(self, _query_length: int) -> tuple[int, int]:
        """Return the columns in use and the first one's index."""
        return self._slots.width, 0


class Slots:
    """The cache of a batch. `lengths` has each slot's tokens; a free slot keeps what it had until it is filled anew."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self.cache = DynamicCache()
        self.cache.layers = [SlotLayer(self) for _ in range(layers)]
        self.lengths: list[int] = []
        self.every = self.last = torch.empty(0, dtype=torch.long, device=device)
        self.width = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def fill(self, slots: Sequence[int], read: DynamicCache, pads: Sequence[int], shared: int) -> None:
        """Copy rows just read into `slots`, new ones included.

        `read` has them in order: `shared` columns that all have, then each row's own, left-padded by its `pads`.
        """
        total = read.get_seq_length()
        self._grow(max(slots) + 1, total + 1, read)
        for slot, pad in zip(slots, pads, strict=True):
            self.lengths[slot] = total - pad
        where = torch.tensor(slots, device=self.every.device)
        columns = torch.arange(shared, total, device=where.device)[None] + torch.tensor(pads, device=where.device)[:, None]
        source = (torch.arange(len(slots), device=where.device)[:, None], slice(None), columns.clamp(max=total - 1))
        for mine, given in zip(self.cache.layers, read.layers, strict=True):
            for buffer, tensor in ((mine.keys, given.keys), (mine.values, given.values)):
                if shared:
                    buffer[where, :, :shared] = tensor[:, :, :shared]
                buffer[where, :, shared:total] = tensor[source].transpose(1, 2)

    def extend(self, going: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Make room for one more token in the slots `going`; return their mask [slots, width], positions [slots, 1]."""
        for slot in going:
            self.lengths[slot] += 1
        self.width = max(self.lengths[slot] for slot in going)
        self._grow(len(self), self.width, None)
        lengths = torch.tensor(self.lengths, device=self.every.device).clamp(max=self.width)
        self.last = lengths - 1
        mask = torch.arange(self.width, device=lengths.device)[None] < lengths[:, None]
        return mask.long(), self.last[:, None]

    def keep(self, slots: Sequence[int]) -> None:
        """Drop every other slot; those kept are renumbered from 0 in the given order."""
        where = torch.tensor(slots, device=self.every.device)
        width = max(self.lengths[slot] for slot in slots) + _ROOM
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :width][where], layer.values[:, :, :width][where]
        self.lengths = [self.lengths[slot] for slot in slots]
        self.every = torch.arange(len(slots), device=where.device)

    def _grow(self, rows: int, columns: int, like: DynamicCache | None) -> None:
        """See to it that the buffers hold `rows` slots of `columns`; `like` gives shapes and dtype at first."""
        have = self.cache.layers[0].keys
        if have is not None and have.shape[0] >= rows and have.shape[2] >= columns:
            return
        for index, layer in enumerate(self.cache.layers):
            given = like.layers[index] if like is not None else layer
            layer.keys, layer.values = (
                _widened(layer.keys, given.keys, rows, columns),
                _widened(layer.values, given.values, rows, columns),
            )
        size = self.cache.layers[0].keys.shape[0]
        self.lengths += [1] * (size - len(self.lengths))
        self.every = torch.arange(size, device=self.every.device)


def _widened(old: torch.Tensor | None, like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return a zeroed buffer with room for `rows` and `columns` (and more) that begins with what `old` holds."""
    _, heads, _, size = like.shape
    if old is None:
        return like.new_zeros(rows, heads, columns + _ROOM, size)
    wide = old.shape[2] if old.shape[2] >= columns else max(columns + _ROOM, old.shape[2] * 5 // 4)
    out = old.new_zeros(max(rows, old.shape[0]), heads, wide, size)
    out[: old.shape[0], :, : old.shape[2]] = old
    return out
