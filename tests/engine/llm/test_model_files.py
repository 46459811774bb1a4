"""A model's sizes from its config.json alone, held to what transformers makes of the same settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.llm.model_files import bundled_folder, model_settings, shape_of

WIDE = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 900, "intermediate_size": 704}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 48},
    "qwen3_moe": {"num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    "gemma2": {"num_key_value_heads": 4, "head_dim": 64},
    "phi3": {"num_key_value_heads": 8, "pad_token_id": 0},
    "gpt_oss": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
}


@pytest.mark.parametrize("kind", KINDS)
def test_its_weights_are_those_that_transformers_makes(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **WIDE, **KINDS[kind])
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    shape = shape_of(model_settings(tmp_path))
    assert shape is not None
    assert shape.weights == pytest.approx(sum(weights.numel() for weights in made.parameters()), rel=0.01)


def test_the_bundled_models_weights_are_those_of_its_file() -> None:
    folder = bundled_folder("tiny")
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
    shape = shape_of(model_settings(folder))
    assert shape is not None
    assert shape.weights * shape.stored_bytes == sum(end - start for start, end in sizes)


def test_a_part_that_reads_text_is_what_counts() -> None:
    inner = {**WIDE, "rms_norm_eps": 1e-6, "num_key_value_heads": 2}
    assert shape_of({"model_type": "seen", "text_config": inner}) == shape_of(inner)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**WIDE, "layer_norm_epsilon": 1e-5},
        {**WIDE, "rms_norm_eps": 1e-6, "kv_lora_rank": 512},
        {**WIDE, "rms_norm_eps": 1e-6, "hidden_size": "wide"},
        {**WIDE, "rms_norm_eps": 1e-6, "num_attention_heads": 0},
    ],
)
def test_other_kinds_and_broken_settings_are_not_guessed(settings: dict[str, Any]) -> None:
    assert shape_of(settings) is None
