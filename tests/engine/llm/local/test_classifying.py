"""The engine of sequence-classification models, held against transformers' own pipeline on random weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Completion, ModelSource, Request
from caiflow.engine.llm.load import load_engine
from support.asking import ask

WORDS = "how do i bake bread steal a car to it find mix flour no never gladly".split()  # noqa: SIM905
TEXTS = ["how do i bake bread", "steal a car", "no", "never gladly find it " * 12, "mix flour to bake bread"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bert"))


def saved(folder: Path, **config: Any) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    labels = {"id2label": {0: "fine", 1: "toxic", 2: "odd"}, "label2id": {"fine": 0, "toxic": 1, "odd": 2}}
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    settings = BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.5, **sizes, **labels, **config
    )
    BertForSequenceClassification(settings).save_pretrained(folder)
    return folder


def source(folder: Path, **more: Any) -> ModelSource:
    return ModelSource(path=str(folder), identity="bert", **more)


def labelled(folder: Path, texts: list[str]) -> list[dict[str, float]]:
    answers = ask(load_engine(source(folder)), [Request(text, classify=True) for text in texts])
    assert all(isinstance(answer, Completion) for answer in answers), answers
    return [{label: math.exp(p) for label, p in answer.logprobs.items()} for answer in answers]


def by_pipeline(folder: Path, texts: list[str]) -> list[dict[str, float]]:
    from transformers import pipeline

    found = pipeline("text-classification", model=str(folder), top_k=None)(texts)
    return [{one["label"]: pytest.approx(one["score"], abs=1e-5) for one in row} for row in found]


def test_labels_have_the_pipelines_probabilities(folder: Path) -> None:
    found = labelled(folder, TEXTS)
    assert found == by_pipeline(folder, TEXTS)
    assert len({round(row["toxic"], 4) for row in found}) == len(TEXTS)


def test_labels_that_may_hold_together_each_have_their_own(tmp_path: Path) -> None:
    folder = saved(tmp_path, problem_type="multi_label_classification")
    found = labelled(folder, TEXTS)
    assert found == by_pipeline(folder, TEXTS)
    assert any(abs(sum(row.values()) - 1) > 0.1 for row in found)


def test_what_it_cant_read_or_write_is_refused_by_itself(folder: Path) -> None:
    talk = ({"role": "user", "content": "how"}, {"role": "assistant", "content": "no"})
    requests = [
        Request("bread " * 80, classify=True),
        Request(talk, classify=True),
        Request("no"),
        Request("no", classify=True),
    ]
    long, untemplated, writing, read = ask(load_engine(source(folder)), requests)
    assert isinstance(long, EngineError)
    assert long.message == "the text has 82 tokens, and the classifier reads 1 to 64"
    assert isinstance(untemplated, EngineError)
    assert "no chat template" in untemplated.message
    assert isinstance(writing, EngineError)
    assert "(BertForSequenceClassification), which writes no text" in writing.message
    assert isinstance(read, Completion)


def test_a_template_turns_a_conversation_into_what_it_reads(folder: Path) -> None:
    talk = ({"role": "user", "content": "how do i"}, {"role": "assistant", "content": "bake bread"})
    plain = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (answer,) = ask(load_engine(source(folder, chat_template=plain)), [Request(talk, classify=True)])
    assert isinstance(answer, Completion), answer
    assert answer.logprobs is not None
    assert answer.logprobs.keys() == {"fine", "toxic", "odd"}
