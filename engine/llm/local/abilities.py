"""What a loaded model is able to do: which tokens end its answers, whether it keeps plain keys and values. Runs none of it."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: those of the generation config and the tokenizer's EOS."""
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    found = given if isinstance(given, list | tuple) else [given]
    return frozenset(int(token) for token in (*found, tokenizer.eos_token_id) if token is not None)


def plain_layers(model: Any) -> int | None:
    """Return the number of layers if each keeps a plain key-value cache that positions are given to; None otherwise."""
    if not takes(model, "position_ids"):
        return None
    layers = DynamicCache(config=model.config).layers
    return len(layers) if layers and all(type(layer) is DynamicLayer for layer in layers) else None


def takes(model: Any, name: str) -> bool:
    """Return whether a model's forward pass has a parameter of this name."""
    forward = model.get_base_model().forward if hasattr(model, "get_base_model") else model.forward
    return name in inspect.signature(forward).parameters
