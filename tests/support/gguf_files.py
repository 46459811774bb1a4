"""GGUF files made of small random models with the `gguf` library, as llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from caiflow.engine.training.scratch import train_tokenizer
from support.small_models import EVEN, lessons

ARCHITECTURES = ("llama", "qwen2", "starcoder2")
WIDTH, HEADS, LAYERS = EVEN.hidden_size, 2, 2  # heads of 32, the least that vLLM takes on CPUs
_NORMAL, _CONTROL = 1, 3


def original(architecture: str, folder: Path) -> Any:
    """Save a random model of one of `ARCHITECTURES` with a tokenizer, and return it."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    tokenizer = train_tokenizer([turn["content"] for row in lessons() for turn in row["messages"]] * 2, EVEN)
    set_seed(5)
    config = AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=EVEN.intermediate_size,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS // 2, max_position_embeddings=512,
        tie_word_embeddings=architecture != "starcoder2", initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        weight.data += 0.01 * weight.data.new_empty(weight.shape).normal_()  # norms and biases that aren't all alike
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def write_gguf(
    folder: Path, file: Path, quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0, rule: str = "gpt-2"
) -> Path:
    """Write the model in `folder` as a GGUF file whose matrices are quantised; `rule` says how texts are divided."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    config = model.config
    writer = gguf.GGUFWriter(file, config.model_type)
    _write_shape(writer, config)
    _write_tokenizer(writer, folder, config, rule)
    for name, weight in stored(model).items():
        plain = weight.ndim == 1
        writer.add_tensor(
            name, weight if plain else gguf.quantize(weight, quantization), raw_dtype=None if plain else quantization
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def stored(model: Any) -> dict[str, np.ndarray]:
    """Return a model's weights under GGUF's names, in float32, a Llama's queries and keys in llama.cpp's order."""
    config = model.config
    architecture = {name: which for which, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.numpy()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        found[names.get_name(name, try_suffixes=(".weight", ".bias"))] = np.ascontiguousarray(values)
    return found


def _write_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if config.model_type == "starcoder2":
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: Any, rule: str) -> None:
    read = json.loads((folder / "tokenizer.json").read_text())
    vocab = sorted(read["model"]["vocab"].items(), key=lambda entry: entry[1])
    special = {token["content"] for token in read["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([_CONTROL if token in special else _NORMAL for token, _ in vocab])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in read["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
