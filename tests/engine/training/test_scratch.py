"""A model from nothing: its tokenizer and its random weights."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.llm.base import Request
from caiflow.engine.llm.render import Renderer
from caiflow.engine.training.scratch import random_model, train_tokenizer
from support.small_models import SHAPE, lessons


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [turn["content"] for row in lessons() for turn in row["messages"]] * 2
    return train_tokenizer(texts, SHAPE)


@settings(max_examples=200)
@given(text=st.text())
def test_any_text_survives(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text or "<|" in text


@pytest.mark.parametrize("before", ["The answer is (", "Options:\n(", "So ("])
def test_choices_are_one_token_after_a_parenthesis(tokenizer: Any, before: str) -> None:
    request = Request(({"role": "user", "content": "Which one?"},), prefill=before, choices=("A", "B"))
    ids = Renderer(tokenizer).choices(request)
    assert tokenizer.convert_ids_to_tokens([ids["A"], ids["B"]]) == ["A", "B"]
    assert tokenizer.tokenize(f"{before}A)")[-2:] == ["A", ")"], "the same tokens where the text is learnt whole"


def test_a_conversation_has_one_begin_token_and_ends_each_turn(tokenizer: Any) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == "<|begin|><|user|>hi<|end|><|assistant|>ho<|end|>"
    ids = Renderer(tokenizer).ids(Request((talk[0],)))  # type: ignore[arg-type]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == "<|assistant|>"


def test_weights_follow_from_the_seed(tokenizer: Any) -> None:
    import torch

    first, same, other = (random_model(SHAPE, tokenizer, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_the_model_ends_where_the_tokenizer_does(tokenizer: Any) -> None:
    model = random_model(SHAPE, tokenizer, 0)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == 512
