"""Keys and values of the rows that decode together, a slot per row, which is reused; and of those that will come back.

Owns one buffer per layer. A row's tokens lie in its slot from column 0 on, so that newcomers of any length join without moving
anyone. What a finished row has is kept for its next call, while there is room. Knows nothing of requests or sampling. Imported
on workers only, since it imports torch and transformers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from caiflow.engine.llm.local.attention import Span, spans

_ROOM = 64
"""Columns allocated beyond the longest row, and by which a full buffer grows at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Tokens of a row and their keys and values, each [heads, tokens, D], layer by layer."""

    ids: np.ndarray
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]

    @property
    def size_bytes(self) -> int:
        """The size of the keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


class KeptRows:
    """What rows had at their last calls, by name; where room is short, those kept longest leave first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size_bytes = self._room_bytes = 0

    def keep(self, name: str, kept: Kept, room_bytes: int) -> None:
        """Keep a row's, in place of what it had before; all together take up no more than `room_bytes`, or what it once was."""
        self.drop(name)
        self._kept[name] = kept
        self._size_bytes += kept.size_bytes
        self._room_bytes = max(self._room_bytes, room_bytes)
        while self._size_bytes > self._room_bytes:
            self.drop(next(iter(self._kept)))

    def drop(self, name: str) -> None:
        """Let a row's go."""
        if (kept := self._kept.pop(name, None)) is not None:
            self._size_bytes -= kept.size_bytes

    def find(self, name: str) -> Kept | None:
        """Return a row's."""
        return self._kept.get(name)


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Rows just read: each has its first `begun` tokens at the end of `before` columns, the others at the end of the cache."""

    cache: DynamicCache
    before: int
    begun: Sequence[int]
    lengths: Sequence[int]

    def columns(self) -> torch.Tensor:
        """Return in which column each row has each of its tokens, [rows, longest]; beyond its last token any one."""
        total, device = self.cache.get_seq_length(), self.cache.layers[0].keys.device
        begun, lengths = torch.tensor(self.begun, device=device)[:, None], torch.tensor(self.lengths, device=device)[:, None]
        place = torch.arange(max(self.lengths), device=device)[None]
        return torch.where(place < begun, self.before - begun + place, total - lengths + place).clamp(max=total - 1)

    def of(self, rows: Sequence[int]) -> Read:
        """Return some of the rows, by index."""
        if len(rows) < len(self.lengths):
            self.cache.batch_select_indices(torch.tensor(rows, device=self.cache.layers[0].keys.device))
        return Read(self.cache, self.before, [self.begun[row] for row in rows], [self.lengths[row] for row in rows])


def resumed(rows: Sequence[tuple[Kept, int]]) -> DynamicCache:
    """Return a cache in which each row has its first tokens of what was kept, as many as it says, at the end."""
    cache = DynamicCache()
    width = max(begun for _, begun in rows)
    for index, pair in enumerate(rows[0][0].layers):
        joined = [one.new_zeros(len(rows), one.shape[0], width, one.shape[2]) for one in pair]
        for place, (kept, begun) in enumerate(rows):
            for whole, one in zip(joined, kept.layers[index], strict=True):
                whole[place, :, width - begun :] = one[:, :begun]
        cache.update(*joined, index)
    return cache


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

    def fill(self, slots: Sequence[int], read: Read) -> None:
        """Copy rows just read into `slots`, new ones included."""
        longest = max(read.lengths)
        self._grow(max(slots) + 1, longest + 1, read.cache)
        for slot, length in zip(slots, read.lengths, strict=True):
            self.lengths[slot] = length
        where = torch.tensor(slots, device=self.every.device)
        source = (torch.arange(len(slots), device=where.device)[:, None], slice(None), read.columns())
        for mine, given in zip(self.cache.layers, read.cache.layers, strict=True):
            for buffer, tensor in ((mine.keys, given.keys), (mine.values, given.values)):
                buffer[where, :, :longest] = tensor[source].transpose(1, 2)

    def taken(self, slot: int, ids: Sequence[int]) -> Kept:
        """Return a copy of what a slot holds: keys and values of all its tokens but the last drawn, which isn't read yet."""
        length = self.lengths[slot]
        of_row = (slot, slice(None), slice(length))
        layers = [(layer.keys[of_row].clone(), layer.values[of_row].clone()) for layer in self.cache.layers]
        return Kept(np.asarray(ids[:length]), layers)

    def spans(self, going: Sequence[int]) -> list[Span]:
        """Return the slots `going` as attention reads them."""
        layer, on = self.cache.layers[0], frozenset(going)
        column_bytes = 2 * layer.keys[0, :, 0].nbytes
        return spans([length if slot in on else 0 for slot, length in enumerate(self.lengths)], column_bytes)

    def slot_bytes(self) -> int:
        """Return the size of one slot."""
        return sum(layer.keys[0].nbytes + layer.values[0].nbytes for layer in self.cache.layers)

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
