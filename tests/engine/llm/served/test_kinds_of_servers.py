"""A judge behind three kinds of servers: some refuse fields that they do not know, some ignore them, some have new names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Engine, ModelSource, Request
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.served.taught import as_taught, in_words, read_taught
from caiflow.operators.judging.phrases import parse_choice
from caiflow.operators.judging.prompts import JUDGE_PREFILL, judge_messages
from support.asking import ask, text
from support.bad_server import BadServer, Reply, said

LIKELIHOODS = {"logprobs", "top_logprobs"}
KNOWN = {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "response_format"} | LIKELIHOODS
"""What OpenAI's API has taken all along."""
NEWEST = KNOWN - {"max_tokens", "stop"} | {"max_completion_tokens"}
PROSE = ("({})", "{}) is kinder.", "The answer is ({}).", "**{}**", "Response {} is better.", "[[{}]]", "My choice: {}")
UNDECIDED = ("Both are fine.", "({}) is more harmful.", "(A) or (B)?")


def refused(name: str, instead: str = "") -> Reply:
    hint = f" Use '{instead}' instead." if instead else ""
    told = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
    return 400, {}, json.dumps({"error": {"message": told, "type": "invalid_request_error", "param": name}})


def judged(body: dict[str, Any]) -> Reply:
    """Prefer the option that has GOOD, in words that the pair's number chooses; of every tenth pair say nothing."""
    asked = body["messages"][-1]
    assert asked["role"] == "user"
    number = int(re.findall(r"pair (\d+)", asked["content"])[-1])
    shown = asked["content"].split("Options:")[-1]
    letter = "A" if shown.index("GOOD") < shown.index("BAD") else "B"
    wording = UNDECIDED[number // 10 % 3] if number % 10 == 9 else PROSE[number % len(PROSE)]
    logprobs = {
        "content": [{"token": letter, "logprob": -0.1, "top_logprobs": [{"token": "AB".replace(letter, ""), "logprob": -3}]}]
    }
    return said(wording.format(letter), logprobs=logprobs if body.get("logprobs") else None)


def without_likelihoods(body: dict[str, Any]) -> Reply:
    """Take the fields that ask for them, and do nothing about them."""
    unknown = sorted(body.keys() - KNOWN)
    return refused(unknown[0]) if unknown else judged({**body, "logprobs": False})


def structured(body: dict[str, Any]) -> Reply:
    """Refuse to give them, and answer in the shape that is asked for."""
    if LIKELIHOODS & body.keys():
        return refused("logprobs")
    if "response_format" not in body:
        return judged(body)
    shape = body["response_format"]["json_schema"]
    assert (shape["strict"], shape["schema"]["properties"]["answer"]["enum"]) == (True, ["A", "B"])
    letter = parse_choice(json.loads(judged(body)[2])["choices"][0]["message"]["content"])
    return said(json.dumps({"answer": letter or "neither"}))


def unstructured(body: dict[str, Any]) -> Reply:
    """Give none, and refuse shapes as well."""
    if "response_format" in body:
        told = "'response_format.type' must be 'text' or 'json_object'"
        return 400, {}, json.dumps({"error": {"message": told, "type": "invalid_request_error"}})
    return without_likelihoods(body)


def strict(body: dict[str, Any]) -> Reply:
    unknown = sorted(body.keys() - KNOWN)
    return refused(unknown[0]) if unknown else judged(body)


def newest(body: dict[str, Any]) -> Reply:
    if "max_tokens" in body:
        return refused("max_tokens", "max_completion_tokens")
    unknown = sorted(body.keys() - NEWEST)
    return refused(unknown[0]) if unknown else judged(body)


Answering = Callable[[dict[str, Any]], Reply]
SERVERS: dict[str, Answering] = {"refuses": strict, "ignores": judged, "newest": newest}
UNLIKELY: dict[str, Answering] = {"ignores": without_likelihoods, "structured": structured, "words alone": unstructured}


@pytest.fixture
def connect(server: BadServer, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    engines: list[Engine] = []

    def load() -> Engine:
        source = ModelSource("served", identity="e", engine="openai", options={"base_url": server.url})
        engines.append(load_engine(as_taught(source, tmp_path / "taught.json")))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def question(number: int, swapped: bool) -> Request:
    options = ("BAD", "GOOD") if swapped else ("GOOD", "BAD")
    messages = judge_messages(f"This is pair {number}.", "Which is kinder?", options)
    return Request(tuple(messages), prefill=JUDGE_PREFILL)


def put(connect: Callable[[], Engine], requests: list[Request]) -> list[Any]:
    """Return the answers, asked anew as often as the server has taught something, as a run does."""
    for _ in range(6):
        answers = ask(connect(), requests)
        if not any(isinstance(answer, EngineError) and answer.kind == "ask_anew" for answer in answers):
            return answers
    raise AssertionError("the server teaches something with every call")


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("by", ["text", "logprobs"])
def test_forty_pairs_are_judged_in_both_orders_and_none_is_lost(
    server: BadServer, connect: Callable[[], Engine], kind: str, by: str
) -> None:
    server.owner, server.reply = "system", lambda body, n: SERVERS[kind](body)
    asked = [(number, swapped) for number in range(40) for swapped in (False, True)]
    choices = ("A", "B") if by == "logprobs" else ()
    answers = put(connect, [question(*one)._replace(choices=choices) for one in asked])
    assert not [answer for answer in answers if isinstance(answer, EngineError)]
    read = [parse_choice(answer.text) for answer in answers]
    right = ["B" if swapped else "A" for _, swapped in asked]
    unread = {number for (number, _), letter in zip(asked, read, strict=True) if letter is None}
    assert unread == ({9, 19, 29, 39} if by == "text" else set())
    assert all(letter in (None, good) for letter, good in zip(read, right, strict=True))
    assert not set().union(*server.calls) - (KNOWN | NEWEST if kind == "newest" else KNOWN)


@pytest.mark.parametrize("kind", UNLIKELY)
def test_a_server_without_log_probabilities_is_asked_for_its_choice_itself(
    server: BadServer, connect: Callable[[], Engine], kind: str, tmp_path: Path
) -> None:
    server.owner, server.reply = "system", lambda body, n: UNLIKELY[kind](body)
    asked = [(number, swapped) for number in range(40) for swapped in (False, True)]
    answers = put(connect, [question(*one)._replace(choices=("A", "B")) for one in asked])
    assert not [answer for answer in answers if isinstance(answer, EngineError) or answer.logprobs]
    read = [parse_choice(answer.text) for answer in answers]
    right = ["B" if swapped else "A" for _, swapped in asked]
    assert {number for (number, _), letter in zip(asked, read, strict=True) if letter is None} == {9, 19, 29, 39}
    assert all(letter in (None, good) for letter, good in zip(read, right, strict=True))
    told = in_words(read_taught(tmp_path / "taught.json"))
    as_json = "" if kind == "words alone" else " as JSON"
    assert told == (
        f"in words to go on from an answer's beginning and for a choice itself{as_json}, since it gives no log-probabilities"
    )
    lessons = len(server.calls)
    put(connect, [question(*one)._replace(choices=("A", "B")) for one in asked])
    assert len(server.calls) == lessons + len(asked)  # what was found is asked no more


def test_one_refused_answer_teaches_nothing_about_log_probabilities(
    server: BadServer, connect: Callable[[], Engine], tmp_path: Path
) -> None:
    server.owner = "system"
    server.reply = lambda body, n: said("", message={"role": "assistant", "content": None, "refusal": "No."})
    (answer,) = put(connect, [question(1, False)._replace(choices=("A", "B"))])
    assert isinstance(answer, EngineError)
    assert answer.kind == "no_logprobs"
    assert "logprobs" not in read_taught(tmp_path / "taught.json").without


def test_a_server_that_goes_on_with_turns_is_asked_to(server: BadServer, connect: Callable[[], Engine]) -> None:
    server.reply = lambda body, n: said("A)")
    for server.owner, continued in (("vllm", True), ("caiflow", True), ("sglang", True), ("library", False), ("", False)):
        text_asked = put(connect, [question(1, False)])[0]
        assert text_asked.text == "A)"
        assert ("continue_final_message" in server.calls[-1]) == continued
        assert (server.calls[-1]["messages"][-1]["role"] == "assistant") == continued


def test_only_a_prefill_teaches_that_it_is_not_taken(server: BadServer, connect: Callable[[], Engine], tmp_path: Path) -> None:
    server.owner = "system"
    assert text(connect(), Request(({"role": "user", "content": "Hi"},))).text == "fine"
    assert not (tmp_path / "taught.json").exists()
    (first,) = ask(connect(), [question(1, False)])
    assert isinstance(first, EngineError)
    assert "isn't known to take `add_generation_prompt`, `continue_final_message`" in str(first)
    assert read_taught(tmp_path / "taught.json").without == ("add_generation_prompt", "continue_final_message")
    assert len(server.calls) == 1
    thinking = said("<think>It is kind.</think>\n\nThe answer is (A)")
    server.reply = lambda body, n: thinking
    (answer,) = put(connect, [question(1, False)])
    assert (answer.text, answer.thought) == ("A)", "It is kind.")
