"""Attention of one new token per row over keys and values that several heads share.

Owns how such a step is computed; every other goes through transformers' own. For each head the library copies the shared keys
and values of all rows and columns, at every token, which on a CPU takes three quarters of a step of a model like SmolLM2. Here
the heads that share are the rows of one product instead: the same sums over the same numbers. Imported on workers only.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_sharing"


def share_keys(model: Any) -> None:
    """Let `model` decode without copies of its keys and values, where its heads share them and it attends through `sdpa`."""
    config = model.config.get_text_config(decoder=True)
    heads, shared = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if heads and shared and shared < heads and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


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
    attended = torch.nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=mask, dropout_p=given.get("dropout", 0.0), scale=given.get("scaling")
    )
    return attended.reshape(rows, 1, heads, size), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
