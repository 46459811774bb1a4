"""Fields that a server refuses and names that it lists: found once, kept, and counted to what the answers are."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Completion, Engine, ModelSource, Request, Sampling
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.served.refusals import PREFILL_FIELDS, refused_fields
from caiflow.engine.llm.served.taught import ASK_ANEW, Taught, as_taught, keep_taught, read_taught
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from support.asking import ask, text
from support.bad_server import BadServer, said

CHAT = ({"role": "user", "content": "Which one?"},)
BODY = {
    "model": "m", "messages": [], "max_tokens": 5, "temperature": 0.0, "top_p": 1.0, "seed": 3, "top_k": 5, "min_p": 0.1,
    "repetition_penalty": 1.2, "add_generation_prompt": False, "continue_final_message": True, "stop": ["#"],
}  # fmt: skip


def openai(message: str, param: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}})


def pydantic(*fields: str, kind: str = "extra_forbidden") -> str:
    told = [{"type": kind, "loc": ["body", f], "msg": "Extra inputs are not permitted", "input": BODY} for f in fields]
    return json.dumps({"detail": told})


@pytest.mark.parametrize(
    ("refusal", "fields"),
    [
        (openai("Unsupported value: 'temperature' does not support 0 with this model.", "temperature"), ["temperature"]),
        (openai("Unsupported parameter: 'top_p' is not supported with this model.", "top_p"), ["top_p"]),
        (openai("Unrecognized request argument supplied: seed"), ["seed"]),
        (openai("Unrecognized request arguments supplied: min_p, top_k"), ["top_k", "min_p"]),
        (openai("repetition_penalty isn't supported"), ["repetition_penalty"]),
        (openai("property 'seed' is unsupported, did you mean 'user'?"), ["seed"]),
        (pydantic("seed"), ["seed"]),
        (pydantic("top_k", "min_p"), ["top_k", "min_p"]),
        (pydantic("add_generation_prompt"), ["add_generation_prompt", "continue_final_message"]),
        ('{"detail": "Unsupported parameter: seed"}', ["seed"]),
        ('{"error": "continue_final_message: unknown field"}', ["add_generation_prompt", "continue_final_message"]),
        ("unknown field \"seed\"", ["seed"]),
        (openai("Only the default (1) value of temperature is supported", "temperature"), ["temperature"]),
        # not for us to leave out
        (openai("temperature must be between 0 and 2, got 3", "temperature"), []),
        (openai("'max_tokens' is not supported with this model.", "max_tokens"), []),
        (openai("This model's maximum context length is 512 tokens; reseed is not supported"), []),
        (openai("logprobs are not supported"), []),
        (openai("Invalid 'messages': role 'system' is not supported", "messages"), []),
        (pydantic("messages", kind="missing"), []),
        ("[1, null, {\"a\": {\"seed\": 3}}]", []),
    ],
)  # fmt: skip
def test_a_refusal_names_the_fields_that_a_server_does_not_take(refusal: str, fields: list[str]) -> None:
    assert list(refused_fields(refusal, BODY)) == fields
    assert refused_fields(refusal, {"model": "m", "messages": []}) == ()


@pytest.fixture
def connect(server: BadServer) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def load(source: ModelSource | None = None) -> Engine:
        engines.append(load_engine(source or served(server)))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def served(server: BadServer, path: str = "m") -> ModelSource:
    return ModelSource(path, identity="e", engine="openai", options={"base_url": server.url})


def told_anew(engine: Engine, why: str) -> None:
    (answer,) = ask(engine, [Request("a")])
    assert isinstance(answer, EngineError), answer
    assert (answer.kind, why in str(answer)) == (ASK_ANEW, True), answer


def without(*fields: str, together: threading.Barrier | None = None) -> Callable[[dict[str, Any], int], Any]:
    def reply(body: dict[str, Any], n: int) -> Any:
        named = next((name for name in fields if name in body), None)
        if named is None:
            return said("fine")
        if together is not None:
            together.wait()
        return 400, {}, openai(f"Unsupported parameter: '{named}' is not supported with this model.", named)

    return reply


def test_what_a_server_refuses_is_left_out_by_calls_under_way_too(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = without("seed", together=threading.Barrier(6, timeout=30))
    answers = ask(connect(), [Request(CHAT, seed=n) for n in range(6)])
    assert all(isinstance(answer, Completion) for answer in answers), answers
    assert len(server.calls) == 12


def test_many_fields_are_left_out_one_after_another(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = without("seed", "temperature", "top_p", "top_k", "add_generation_prompt")
    assert text(connect(), Request(CHAT, Sampling(top_k=3), prefill="So")).text == "fine"
    assert set(server.calls[-1]) == {"model", "messages", "max_tokens"}
    assert len(server.calls) == 6


def test_answers_are_never_counted_as_if_asked_with_what_was_left_out(
    server: BadServer, connect: Callable[..., Engine], tmp_path: Path
) -> None:
    server.reply = without("seed", "top_p")
    path, source, lessons = tmp_path / "taught.json", served(server), []
    for _ in range(2):
        engine = connect(as_taught(source, path))
        answers = ask(engine, [Request(CHAT, seed=n) for n in range(4)])
        assert {(answer.kind, answer.retry) for answer in answers if isinstance(answer, EngineError)} == {(ASK_ANEW, False)}
        lessons.append(str(answers[0]))
        before = len(server.calls)
        assert isinstance(ask(engine, [Request(CHAT, seed=9)])[0], EngineError)
        assert len(server.calls) == before
    assert [name in lesson for lesson in lessons for name in ("`seed`", "`top_p`")] == [True, False, False, True]
    taught = as_taught(source, path)
    assert read_taught(path).without == ("seed", "top_p")
    assert taught.identity != source.identity
    assert text(connect(taught), Request(CHAT, seed=1)).text == "fine"


def test_an_engine_that_learns_late_forgets_nothing_that_others_learnt(
    server: BadServer, connect: Callable[..., Engine], tmp_path: Path
) -> None:
    path = tmp_path / "taught.json"
    late = connect(as_taught(served(server), path))
    keep_taught(path, Taught(without=("seed", "top_p")), "the same server, asked by another step")
    server.reply = without("seed")
    ask(late, [Request(CHAT, seed=1)])
    assert read_taught(path).without == ("seed", "top_p")


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ((), ""),
        (("seed", "top_p"), "without `seed`, `top_p`"),
        (PREFILL_FIELDS, "in words to go on from an answer's beginning"),
        (("seed", *PREFILL_FIELDS), "in words to go on from an answer's beginning and without `seed`"),
    ],
)
def test_a_plan_says_how_a_server_is_asked(server: BadServer, tmp_path: Path, without: tuple[str, ...], told: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q"}\n')
    (tmp_path / "spec.yaml").write_text(
        f"caiflow: 1\nname: s\nmodels: {{m: {{source: served, base_url: '{server.url}'}}}}\n"
        "steps:\n  rows: {op: load, source: rows.jsonl}\n  answers: {op: generate, input: rows, model: m}\n"
    )
    store = Store(tmp_path / "home")
    keep_taught(store.taught_path(server.url, "served"), Taught(without=without), "served")
    plan = make_plan(load_spec(tmp_path / "spec.yaml"), store).to_json()
    assert plan["ways"] == ([f"m is asked {told}"] if told else [])


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"without": 3}', b"\xff"])
def test_a_damaged_lesson_is_learnt_anew(server: BadServer, tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "taught.json"
    keep_taught(path, Taught("served", ("seed",)), "served")
    path.write_bytes(damage)
    assert as_taught(served(server), path).identity == "e"


def test_another_model_behind_a_bare_address_is_another_model(
    server: BadServer, connect: Callable[..., Engine], tmp_path: Path
) -> None:
    path, source = tmp_path / "taught.json", served(server, server.url)
    told_anew(connect(as_taught(source, path)), "lists 'served'")
    first = as_taught(source, path)
    text(connect(first), Request("a"))
    server.listed = ["other", "served"]  # a second one beside it changes nothing
    text(connect(first), Request("a"))
    server.listed = ["other"]
    told_anew(connect(first), "lists 'other'")
    second = as_taught(source, path)
    text(connect(second), Request("a"))
    assert [call["model"] for call in server.calls] == ["served", "served", "other"]
    assert len({source.identity, first.identity, second.identity}) == 3
