"""Attention of one new token per row, which reads no more keys and values than a row has, nor copies those that heads share.

Owns how such a step is computed; every other goes through transformers' own. For each head the library copies the shared keys
and values of all rows and columns, at every token, which on a CPU takes three quarters of a step of a model like SmolLM2. Here
the heads that share are the rows of one product instead: the same sums over the same numbers. And where rows differ in length
neighbours of about one length are one product, so that short ones don't read the columns of long ones. Imported on workers
only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_sharing"


_PRODUCT_BYTES = 100_000
"""Keys and values that are read in the time that one product more takes."""


class Span(NamedTuple):
    """Neighbouring rows, from `first` up to `last`, and the columns that the longest of them has."""

    first: int
    last: int
    width: int


_SPANS: ContextVar[Sequence[Span]] = ContextVar("_SPANS", default=())


def spans(lengths: Sequence[int], column_bytes: int) -> list[Span]:
    """Return the rows in spans, of which each costs less than the columns that it spares; a row of length 0 may be in none.

    `column_bytes` is the size of the keys and values of one token in one layer.
    """
    found: list[Span] = []
    for place, length in enumerate(lengths):
        if not length:
            continue
        first, last, width = found[-1] if found else Span(place, place, 0)
        wide = max(width, length)
        more = (wide - width) * (last - first) + wide * (place - last) + wide - length
        if found and more * column_bytes < _PRODUCT_BYTES:
            found[-1] = Span(first, place + 1, wide)
        else:
            found.append(Span(place, place + 1, length))
    return found


@contextmanager
def reading(rows: Sequence[Span]) -> Iterator[None]:
    """Have steps of one token attend over these spans alone, where the model attends by `share_keys`; what others get is 0."""
    token = _SPANS.set(rows)
    try:
        yield
    finally:
        _SPANS.reset(token)


def share_keys(model: Any) -> bool:
    """Let `model` decode without copies of its keys and values, where it attends through `sdpa`; return whether it does."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    if heads and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Return [B, T, H, D] for `query` [B, H, T, D] over `key` and `value` [B, K, W, D]; `attention_mask` is [B, 1, T, W]."""
    rows, heads, tokens, size = query.shape
    if tokens > 1 or given.get("position_bias") is not None or given.get("cache") is not None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return attended, None
    together = query.view(rows, key.shape[1], heads // key.shape[1], size)
    mask = None if attention_mask is None else attention_mask.expand(-1, -1, together.shape[2], -1)
    how = {"dropout_p": given.get("dropout", 0.0), "scale": given.get("scaling")}
    asked = _SPANS.get()
    if len(asked) <= 1 or mask is None or len(mask) != rows:
        attended = torch.nn.functional.scaled_dot_product_attention(together, key, value, attn_mask=mask, **how)
        return attended.reshape(rows, 1, heads, size), None
    found = torch.zeros_like(together)
    for first, last, width in asked:
        part = slice(first, last)
        found[part] = torch.nn.functional.scaled_dot_product_attention(
            together[part], key[part, :, :width], value[part, :, :width], attn_mask=mask[part, :, :, :width], **how
        )
    return found.reshape(rows, 1, heads, size), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
