"""`sft`: what is learnt, from what, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.load import load_engine
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.training.models import load_plain, load_tokenizer
from caiflow.operators.sft import Sft, SftParams
from support.asking import ask
from support.small_models import held_out, job, lessons, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return small_model(tmp_path_factory.mktemp("model"))


def train(folder: Path, model: ModelSource | None, rows: Any = None, **fields: Any) -> Job:
    rows = lessons() if rows is None else rows
    models = {} if model is None else {"base": model}
    done = job(folder, {"rows": rows, "held": held_out(lessons()[:6])}, **models)
    start = {} if model is None else {"model": "base"}
    settings = {"input": "rows", "learning_rate": 5e-3, "num_train_epochs": 3, **start, **fields}
    Sft(SftParams.model_validate(settings), StepContext()).train(done)
    return done


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}},
        {"packing": True, "max_length": 128, "num_train_epochs": 10},
        {"eval_input": "held", "loss_on": "completion", "train_sampling_strategy": "group_by_length"},
        {"eval_input": "held", "eval_strategy": "steps", "eval_steps": 4, "gradient_checkpointing": True},
    ],
)
def test_the_loss_falls_and_the_model_loads_without_caiflow(tmp_path: Path, model: ModelSource, fields: dict[str, Any]) -> None:
    done = train(tmp_path, model, **fields)
    points = [json.loads(line) for line in (done.out_dir / "_history.jsonl").read_text().splitlines()]
    losses = [point["loss"] for point in points if "loss" in point]
    assert losses[-1] < losses[0] - 0.1
    assert done.metrics["final_loss"] == losses[-1]
    assert done.metrics["rows"] == 36
    assert ("eval_loss" in done.metrics) == ("eval_input" in fields)
    source = ModelSource(path=str(done.out_dir), identity="")
    assert load_tokenizer(source).chat_template == load_tokenizer(model).chat_template
    before, after = weights(Path(model.path)), weights(done.out_dir)
    assert set(after) == set(before)
    assert any((after[name] != before[name]).any() for name in after)
    assert load_plain(source).dtype == load_plain(model).dtype


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, model: ModelSource) -> None:
    first, again = (weights(train(tmp_path / name, model, lora={"rank": 4, "dropout": 0.1}).out_dir) for name in "ab")
    assert all((first[name] == again[name]).all() for name in first)


def test_a_model_from_nothing_learns_its_rows(tmp_path: Path) -> None:
    scratch = {"hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256, "tokenizer": {"vocab_size": 400}}
    done = train(tmp_path, None, scratch=scratch, num_train_epochs=20)
    assert done.metrics["final_loss"] < 0.8
    source = ModelSource(path=str(done.out_dir), identity="")
    tokenizer, network = load_tokenizer(source), load_plain(source)
    talk = lessons()[0]["messages"]
    ids = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = network.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert written[-1] == tokenizer.eos_token_id, "it has learnt to stop"
    assert tokenizer.decode(written).startswith("To ")
    assert network.config.max_position_embeddings == 256


def test_adapters_can_be_kept_apart(tmp_path: Path, model: ModelSource) -> None:
    import torch

    apart = train(tmp_path / "apart", model, lora={"rank": 4}, merge=False).out_dir
    merged = train(tmp_path / "merged", model, lora={"rank": 4}).out_dir
    assert not (apart / "model.safetensors").exists()
    layers = json.loads((apart / "adapter_config.json").read_text())["target_modules"]
    assert layers == sorted(layers), "the order of a set differs in each process, and with it the adapter's identity"
    sources = [
        ModelSource(path=str(apart), identity=""),
        ModelSource(path=model.path, adapter=str(apart), identity=""),
        ModelSource(path=str(merged), identity=""),
    ]
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        first, *rest = (load_plain(source)(ids).logits for source in sources)
    for other in rest:
        assert torch.allclose(first, other, atol=1e-5)


def test_training_goes_on_from_an_adapter(tmp_path: Path, model: ModelSource) -> None:
    first = train(tmp_path / "first", model, lora={"rank": 4}, merge=False)
    source = ModelSource(path=model.path, adapter=str(first.out_dir), identity="")
    second = train(tmp_path / "second", source, lora={"rank": 4})
    assert second.metrics["train_loss"] < first.metrics["train_loss"]
    whole = train(tmp_path / "whole", source)
    assert whole.metrics["train_loss"] < first.metrics["train_loss"], "all weights are trained, though the adapter froze them"
    with pytest.raises(StepError, match="merge: false on a model that is a kept adapter"):
        train(tmp_path / "third", source, lora={"rank": 4}, merge=False)


def test_plain_texts_and_replies_in_a_column_are_learnt(tmp_path: Path, model: ModelSource) -> None:
    texts = [{"uid": str(n), "text": "one two three four five"} for n in range(8)]
    assert train(tmp_path / "texts", model, texts).metrics["rows"] == 8
    asked = [{"uid": str(n), "prompt": "Say it.", "response": "no", "answer": "yes"} for n in range(8)]
    assert train(tmp_path / "asked", model, asked, column="answer").metrics["final_loss"] < 5


def test_what_can_t_be_learnt_is_named(tmp_path: Path, model: ModelSource) -> None:
    with pytest.raises(StepError, match="row 0: nothing to train on"):
        train(tmp_path / "nothing", model, [{"uid": "0", "prompt": "p"}])
    with pytest.raises(StepError, match="no rows are left to train on"):
        train(tmp_path / "short", model, max_length=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either `model`"),
        ({"model": "base", "scratch": {}}, "either `model`"),
        ({"scratch": {}, "lora": {}}, "leave it out"),
        ({"model": "base", "lora": {"r": 8}}, "Extra inputs"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SftParams.model_validate({"input": "rows", **fields})


def test_needs_name_what_may_be_learnt() -> None:
    params = SftParams.model_validate({"input": "rows", "model": "base", "eval_input": "held"})
    wanted = ["revision|messages|response|text"]
    assert Sft(params, StepContext()).needs() == {"rows": wanted, "held": wanted}


OWN_END = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}<|system|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("apart", [False, True])
def test_answers_stop_at_the_end_of_turn_that_the_template_has(tmp_path: Path, model: ModelSource, apart: bool) -> None:
    fields = {"lora": {"rank": 16}, "merge": False} if apart else {}
    source = model._replace(chat_template=OWN_END)
    done = train(tmp_path, source, num_train_epochs=24, learning_rate=2e-2 if apart else 5e-3, **fields)
    over = {"path": model.path, "adapter": str(done.out_dir)} if apart else {"path": str(done.out_dir)}
    engine = load_engine(ModelSource(**over, tokenizer=str(done.out_dir), identity="", engine="transformers"))
    requests = [Request(tuple(row["messages"][:1]), Sampling(max_tokens=60)) for row in lessons()[:6]]
    for answer in ask(engine, requests):
        assert isinstance(answer, Completion)
        assert answer.finish == "stop", answer
        assert answer.text == answer.text.strip(), "nothing was learnt after the end of turn"


@pytest.mark.parametrize(("strategy", "apart"), [("bfd", True), ("bfd_split", True), ("wrapped", False)])
def test_packed_rows_see_each_other_only_where_it_is_said(
    tmp_path: Path, model: ModelSource, strategy: str, apart: bool
) -> None:
    fields = {"learning_rate": 0, "max_steps": 1, "max_length": 2048}
    plain = train(tmp_path / "plain", model, per_device_train_batch_size=36, **fields).metrics["train_loss"]
    packed = train(
        tmp_path / "packed", model, packing=True, packing_strategy=strategy, per_device_train_batch_size=1, **fields
    ).metrics["train_loss"]
    assert (packed == pytest.approx(plain, abs=1e-4)) == apart
