"""`caiflow try`: one prompt on the real bundled model, held against a run and the model's own tokenizer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import caiflow.examples
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.load import load_engine
from caiflow.engine.rows.folder import Rows
from caiflow.engine.store.artifacts import Store
from support.bad_server import bad_server
from support.commands import command_here
from support.runs_without_ray import carried_out

TINY = Path(caiflow.examples.__path__[0]) / "tiny" / "model"
PROMPT = "How do I bake bread?"
SPEC = """\
caiflow: 1
name: small
constitution: rules.yaml
models: {m: {source: tiny}}
steps:
  rows:     {op: load, source: rows.jsonl}
  answer:   {op: generate, input: rows, model: m, sampling: {temperature: 1, max_tokens: 16}}
  long:     {op: filter, input: answer, drop: [{length: {column: response, min: 1}}]}
  critique: {op: critique, input: long, model: m, sampling: {max_tokens: 8}}
  revision: {op: revise, input: critique, model: m, sampling: {temperature: 1, max_tokens: 16}}
  pair:     {op: judge, input: revision, model: m, candidates: [response, revision], ties: keep}
  tuned:    {op: sft, input: revision, model: m}
  again:    {op: generate, input: rows, model: tuned}
"""
RULES = {
    "caiflow_constitution": 1,
    "name": "rules",
    "principles": [{"id": f"p{n}", "critique": f"Is it {word}?", "revision": f"Be {word}.", "judge": f"Which is {word}?"}
                   for n, word in enumerate(("kind", "honest", "short"))],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "rules.yaml").write_text(json.dumps(RULES))
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n")
    return folder


def tried(place: Path, step: str, prompt: str, *options: str, code: int = 0) -> Any:
    done = command_here(place, "try", "spec.yaml", step, prompt, *options, "--json", CAIFLOW_HOME=str(place / "home"))
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if not code else done.stderr


@pytest.fixture(scope="module")
def pair(place: Path) -> Any:
    return tried(place, "pair", PROMPT)


@pytest.fixture(scope="module")
def ran(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The row as a run makes it: real plan, flow, ledger and store, on an engine of its own."""
    from caiflow.engine.llm.base import ModelSource

    host = EngineHost(partial(load_engine, ModelSource(str(TINY), "tiny")))
    spec = place / "run.yaml"
    spec.write_text(SPEC.partition("  tuned:")[0])
    resolver, _ = carried_out(spec, Store(tmp_path_factory.mktemp("store")), LocalLink(host))  # type: ignore[arg-type]
    (row,) = Rows(resolver.artifacts["pair"].path).pylist()
    host.close()
    return row


def test_a_prompt_gets_what_a_run_gives_it(pair: Any, ran: dict[str, Any]) -> None:
    made = {name: value for step in pair["steps"] for name, value in step["made"][0].items()}
    assert pair["row"]["uid"] == ran["uid"]
    assert [step["step"] for step in pair["steps"]] == ["answer", "critique", "revision", "pair"]
    assert pair["passed"] == ["rows", "long"]
    for name in ("response", "principle", "critique", "revision", "outcome", "p_a", "p_chosen"):
        assert made[name] == ran[name], name


def test_what_the_model_saw_is_what_its_own_tokenizer_counts(pair: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    calls = [call for step in pair["steps"] for call in step["calls"]]
    assert len(calls) > 4
    for call in calls:
        assert len(tokenizer(call["saw"], add_special_tokens=False)["input_ids"]) == call["prompt_tokens"]
        laid_out = tokenizer.apply_chat_template(call["prompt"], tokenize=False, add_generation_prompt=True)
        assert call["saw"] == laid_out + call["prefill"]
    answered = [call for call in calls if call["finish"] == "stop" and call["answer"]]
    for call in answered:
        own = tokenizer(call["answer"], add_special_tokens=False)["input_ids"]
        assert call["completion_tokens"] in (len(own), len(own) + 1)  # the token that ends the turn
    (choices, *_) = [call["logprobs"] for call in pair["steps"][-1]["calls"]]
    assert set(choices) == {"A", "B"}
    assert all(value <= 0 for value in choices.values())


def test_an_answer_of_ones_own_is_what_is_criticised(place: Path) -> None:
    found = tried(place, "critique", json.dumps({"prompt": PROMPT, "response": "Go away."}))
    assert [step["step"] for step in found["steps"]] == ["critique"]
    assert found["steps"][0]["calls"][0]["prompt"][-2]["content"] == "Go away."


def test_people_see_texts_counts_and_columns_and_nothing_is_kept(place: Path) -> None:
    done = command_here(place, "try", "spec.yaml", "critique", PROMPT, CAIFLOW_HOME=str(place / "unused"))
    assert done.returncode == 0, done.stderr
    assert "Loading" not in done.stderr
    for told in ("━━ answer", "asks m", "━━ critique", " tokens", PROMPT, "principle", "passed by"):
        assert told in done.stdout
    assert not list((place / "unused").glob("ledger/*"))
    assert not list((place / "unused").glob("artifacts/*"))


@pytest.mark.parametrize(
    ("step", "prompt", "code", "said"),
    [
        ("tuned", PROMPT, 1, "`sft` takes whole tables, not a row; name one of answer, critique, revision, pair, again"),
        ("again", PROMPT, 1, "again: its model `tuned` isn't trained yet; train it first: caiflow run SPEC --until tuned"),
        ("critque", PROMPT, 2, "did you mean `critique`"),
        ("critique", '{"response": "Hm."}', 2, "no row can be made of it"),
        ("critique", "", 2, "no row can be made of it"),
    ],
)
def test_what_cannot_be_tried_is_said(place: Path, step: str, prompt: str, code: int, said: str) -> None:
    assert said in tried(place, step, prompt, code=code)


def test_a_served_model_is_asked_only_with_its_users_word_and_its_failure_is_named(place: Path, tmp_path: Path) -> None:
    with bad_server() as server:
        address = server.url.replace("127.0.0.1", "0.0.0.0")
        (tmp_path / "rows.jsonl").write_text("{}\n")
        (tmp_path / "spec.yaml").write_text(
            f"caiflow: 1\nmodels: {{m: {{source: far, base_url: '{address}'}}}}\nsteps:\n"
            f"  rows: {{op: load, source: '{place}/rows.jsonl'}}\n  answer: {{op: generate, input: rows, model: m}}\n"
        )
        options = ("--allow-path", str(place))
        assert "--allow-host" in tried(tmp_path, "answer", PROMPT, *options, code=1)
        host = address.removeprefix("http://").removesuffix("/v1")
        found = tried(tmp_path, "answer", PROMPT, *options, "--allow-host", host)
    (call,) = found["steps"][0]["calls"]
    assert call["saw"] is None
    assert call["answer"]
