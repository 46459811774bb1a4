"""A language model's sizes as its config.json tells them: no weights are read, and none need be on this machine.

Owns what the families of models call their sizes, and how many weights follow from them. Knows decoders of the Llama kind
(RMSNorm, gated feed-forward layers, dense or of experts), which Llama, Mistral, Mixtral, Qwen, Gemma, Phi-3 and GPT-OSS are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_OTHERS = ("kv_lora_rank", "linear_num_key_heads", "mamba_d_state", "state_size", "conv_kernel", "n_shared_experts")
"""Settings of other kinds: compressed keys, linear attention, state spaces, experts that all tokens share."""
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Linear(NamedTuple):
    """A linear layer of each block: its sizes, and how often the block has it (experts)."""

    inputs: int
    outputs: int
    copies: int = 1

    @property
    def weights(self) -> int:
        """The weights of all of them in one block."""
        return self.inputs * self.outputs * self.copies


class Shape(NamedTuple):
    """The sizes of a decoder; `queries` and `keys` are the widths of all heads together."""

    hidden: int
    layers: int
    queries: int
    keys: int
    inner: int
    vocabulary: int
    tied: bool = False
    experts: int = 1
    """Feed-forward networks in a block."""
    experts_used: int = 1
    """Those that each token goes through."""
    stored_bytes: int = 4
    """Bytes of a weight in the files."""

    @property
    def linears(self) -> dict[str, Linear]:
        """The linear layers of a block by the last part of their names."""
        up, down = Linear(self.hidden, self.inner, self.experts), Linear(self.inner, self.hidden, self.experts)
        return {
            "q_proj": Linear(self.hidden, self.queries),
            "k_proj": Linear(self.hidden, self.keys),
            "v_proj": Linear(self.hidden, self.keys),
            "o_proj": Linear(self.queries, self.hidden),
            "gate_proj": up,
            "up_proj": up,
            "down_proj": down,
        }

    @property
    def in_blocks(self) -> int:
        """The weights of the blocks' linear layers."""
        return self.layers * sum(linear.weights for linear in self.linears.values())

    @property
    def embedding(self) -> int:
        """The weights of the token embedding."""
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights of the language model; biases, which are few, aren't counted."""
        routers = self.layers * self.hidden * self.experts if self.experts > 1 else 0
        norms = (2 * self.layers + 1) * self.hidden
        return self.in_blocks + routers + norms + self.embedding * (1 if self.tied else 2)


def shape_of(settings: Mapping[str, Any]) -> Shape | None:
    """Return the sizes that a model's config.json tells; None for a model of another kind, or without settings."""
    told = {**settings, **settings.get("text_config", {})}
    if "rms_norm_eps" not in told or any(told.get(name) for name in _OTHERS):
        return None
    try:
        heads = int(told["num_attention_heads"])
        size = told.get("head_dim") or told["hidden_size"] // heads
        experts = told.get("num_local_experts") or told.get("num_experts") or 1
        return Shape(
            hidden=int(told["hidden_size"]),
            layers=int(told["num_hidden_layers"]),
            queries=heads * size,
            keys=(told.get("num_key_value_heads") or heads) * size,
            inner=int((experts > 1 and told.get("moe_intermediate_size")) or told["intermediate_size"]),
            vocabulary=int(told["vocab_size"]),
            tied=bool(told.get("tie_word_embeddings", str(told.get("model_type")).startswith("gemma"))),
            experts=int(experts),
            experts_used=int(told.get("num_experts_per_tok") or 1),
            stored_bytes=_BYTES.get(str(told.get("dtype") or told.get("torch_dtype")), 4),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
