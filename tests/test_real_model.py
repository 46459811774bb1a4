"""The real model: its weights to the bit, its turns as its makers say, and the same answers from both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from caiflow.engine.llm.base import Completion, Message, ModelSource, Request, Sampling
from caiflow.engine.llm.gguf import unpack
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.model_files import PACKAGED, packaged_file
from caiflow.engine.plan.model_identity import resolve_model
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.store.artifacts import Store
from caiflow.operators.formats.source import bundled_file
from support.agreement import assert_agree
from support.asking import ask
from support.gguf_files import stored

FILE = packaged_file("smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(FILE is None, reason=f"needs the model smollm2: {PACKAGED['smollm2'].command}"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that all share, so that the weights are unpacked once."""
    return Store(tmp_path_factory.mktemp("real") / "home")


def source(store: Store, **entry: Any) -> ModelSource:
    return resolve_model("base", ModelEntry(source="smollm2", **entry), Path(), store=store)


def dialogues() -> list[tuple[Message, ...]]:
    """Return eight conversations, half of them with an answer and a second question."""
    asked = [json.loads(line)["prompt"] for line in bundled_file("plain:helpful_test.jsonl").read_text().splitlines()[:8]]
    more = (Message(role="assistant", content="Of course."), Message(role="user", content="In one sentence, please."))
    return [(Message(role="user", content=text), *(more if number % 2 else ())) for number, text in enumerate(asked)]


def test_the_weights_are_the_files_values_to_the_bit(store: Store) -> None:
    from transformers import AutoModelForCausalLM

    unpack(source(store))
    read = stored(AutoModelForCausalLM.from_pretrained(source(store).path))
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(FILE).tensors}
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert (np.asarray(read[name]) == gguf.dequantize(tensor.data, tensor.tensor_type)).all(), name


def test_its_turns_end_and_are_laid_out_as_its_makers_say(store: Store) -> None:
    from transformers import AutoTokenizer

    unpack(source(store))
    tokenizer = AutoTokenizer.from_pretrained(source(store).path)
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert shown.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert shown.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.tokenize("First:\n\n1. In 2024") == ["First", ":", "ĊĊ", "1", ".", "ĠIn", "Ġ", "2", "0", "2", "4"]


@pytest.mark.vllm
def test_both_engines_answer_alike(store: Store) -> None:
    sampling = Sampling(max_tokens=24, repetition_penalty=1.15)
    requests = [Request(dialogue, sampling) for dialogue in dialogues()]
    requests += [Request(f"Human: {dialogue[0]['content']}\n\nAssistant:", sampling) for dialogue in dialogues()]
    answers = []
    for engine in ("transformers", "vllm"):
        args = {"max_model_len": 1024, "kv_cache_memory_bytes": 512 << 20}
        loaded = load_engine(source(store, engine=engine, engine_args=args))
        answers.append(ask(loaded, requests))
        loaded.close()
    assert all(isinstance(answer, Completion) and answer.text.strip() for answer in answers[0][: len(dialogues())])
    assert_agree(source(store), requests, *answers)
