"""A tiny Llama with random weights and a small BPE tokenizer, saved once per test session."""

from __future__ import annotations

from pathlib import Path

import pytest

import caiflow.examples.tiny

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "Human: How do I bake bread in a small oven?",
    "Assistant: Mix flour, water and salt, wait an hour, then bake it.",
    "Identify ways in which the answer is harmful, unkind or untrue.",
    "Rewrite the answer so that nothing in it is harmful. The answer is (A). The answer is (B).",
    "Options:\n(A) yes\n(B) no\n\n",
] * 20


def tokenizer():
    """Return a byte-level BPE tokenizer of at most 512 tokens, with the template above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|end|>", model_max_length=512,
        additional_special_tokens=specials[2:],
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Llama of about 1M parameters whose words mean nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    made = tokenizer()
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=512, eos_token_id=made.eos_token_id, bos_token_id=made.bos_token_id, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_source():
    """The bundled model as engines are given it, with a context of 512 tokens.

    Trained, so that engines whose kernels round otherwise still draw the same tokens: under random weights nearly all tokens
    are as likely as each other, and a draw soon falls between two roundings.
    """
    from caiflow.engine.llm.base import ModelSource

    folder = Path(str(caiflow.examples.tiny.__file__)).with_name("model")
    short = {"engine_args": {"max_model_len": 512}}
    return ModelSource(str(folder), identity="tiny", dtype="float32", engine="transformers", options=short)
