"""Keys and values of a batch whose rows come and go.

Owns one growing buffer per layer and how rows are kept, joined and cropped in it. Knows nothing of requests or sampling.
Imported on workers only, since it imports torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64
"""Columns a full buffer grows by: without room, each token would copy the whole cache."""


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, [B, heads, T, D], as a view of a buffer with room for more columns."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def put(self, keys: torch.Tensor, values: torch.Tensor, width: int) -> None:
        """Take over `keys` and `values` as the buffer, of which the first `width` columns are in use."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values, self._room = keys[:, :, :width], values[:, :, :width], (keys, values)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append the new columns and return all of them."""
        if not self.is_initialized:
            self.put(key_states, value_states, key_states.shape[2])
            return self.keys, self.values
        start, stop = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._room is None or self._room[0].shape[2] < stop:
            self._room = (_widened(self.keys, stop + _ROOM), _widened(self.values, stop + _ROOM))
        self._room[0][:, :, start:stop] = key_states
        self._room[1][:, :, start:stop] = value_states
        self.keys, self.values = self._room[0][:, :, :stop], self._room[1][:, :, :stop]
        return self.keys, self.values


class KV:
    """The cache of one batch and its mask, [B, T] int64: 1 where a row has a token, 0 in its padding."""

    def __init__(self, layers: int, mask: torch.Tensor) -> None:
        self.cache = DynamicCache()
        self.cache.layers = [GrowingLayer() for _ in range(layers)]
        self.mask = mask

    @property
    def width(self) -> int:
        """Columns in use."""
        return int(self.mask.shape[1])

    def extend(self) -> None:
        """Add a column that every row has: the token about to be fed."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)


def joined(parts: Sequence[tuple[KV, Sequence[int]]]) -> KV:
    """Return one batch of the named rows of each part, right-aligned, without columns that no row needs."""
    taken = [(kv, torch.tensor(rows, device=kv.mask.device)) for kv, rows in parts if rows]
    masks = [kv.mask[rows] for kv, rows in taken]
    starts = [int(mask.any(dim=0).to(torch.uint8).argmax()) for mask in masks]
    width = max(mask.shape[1] - start for mask, start in zip(masks, starts, strict=True))
    result = KV(len(taken[0][0].cache.layers), _aligned([m[:, s:] for m, s in zip(masks, starts, strict=True)], width, 1, 0))
    for index, layer in enumerate(result.cache.layers):
        pieces = [(kv.cache.layers[index], rows, start) for (kv, rows), start in zip(taken, starts, strict=True)]
        layer.put(
            _aligned([part.keys[:, :, start:][rows] for part, rows, start in pieces], width, 2, _ROOM),
            _aligned([part.values[:, :, start:][rows] for part, rows, start in pieces], width, 2, _ROOM),
            width,
        )
    return result


def _aligned(pieces: Sequence[torch.Tensor], width: int, axis: int, room: int) -> torch.Tensor:
    """Return the pieces under one another along axis 0, right-aligned to `width` along `axis`, zeros to their left."""
    shape = list(pieces[0].shape)
    shape[0], shape[axis] = sum(len(piece) for piece in pieces), width + room
    out = pieces[0].new_zeros(shape)
    row = 0
    for piece in pieces:
        out.narrow(0, row, len(piece)).narrow(axis, width - piece.shape[axis], piece.shape[axis]).copy_(piece)
        row += len(piece)
    return out


def _widened(tensor: torch.Tensor, width: int) -> torch.Tensor:
    out = tensor.new_empty((*tensor.shape[:2], width, tensor.shape[3]))
    out[:, :, : tensor.shape[2]] = tensor
    return out
