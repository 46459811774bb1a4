from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Completion, Engine, ModelSource, Request, Sampling
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.served import openai
from support.asking import ask, text
from support.bad_server import BadServer, bad_server, said

CHAT = ({"role": "user", "content": "Which one?"},)
KEY = "sk-secret-17"


@pytest.fixture
def connect(server: BadServer) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def load(source: str = "m", tokenizer: str | None = None, **options: Any) -> Engine:
        options = {"base_url": server.url, **options}
        engines.append(load_engine(ModelSource(source, identity="e", engine="openai", tokenizer=tokenizer, options=options)))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def error(engine: Engine, request: Request = Request(CHAT)) -> EngineError:
    (answer,) = ask(engine, [request])
    assert isinstance(answer, EngineError), answer
    return answer


def test_a_chat_is_asked_with_its_sampling_and_seed(server: BadServer, connect: Callable[..., Engine]) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, max_tokens=12, stop=("###",))
    assert text(connect(), Request(CHAT, sampling, seed=5)).text == "fine"
    assert server.paths == ["/v1/chat/completions"]
    assert server.calls[0] == {
        "model": "m", "messages": [dict(CHAT[0])], "max_tokens": 12, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 5,
        "stop": ["###"],
    }  # fmt: skip


def test_calls_of_a_row_say_so_to_a_router(server: BadServer, connect: Callable[..., Engine]) -> None:
    ask(connect(), [Request(CHAT, row="r7"), Request(CHAT, row="r7"), Request(CHAT)])
    assert sorted(headers.get("X-Session-Id", "none") for headers in server.headers) == ["none", "r7", "r7"]


def test_a_plain_text_goes_to_completions(server: BadServer, connect: Callable[..., Engine]) -> None:
    text(connect(), Request("Human: hi", prefill=" there"))
    assert (server.paths, server.calls[0]["prompt"]) == (["/v1/completions"], "Human: hi there")


def test_only_an_address_takes_the_first_model_listed(server: BadServer, connect: Callable[..., Engine]) -> None:
    text(connect(server.url, base_url=None), Request("a"))
    assert server.calls[0]["model"] == "served"


def test_a_prefill_is_continued_and_not_repeated(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: said("The answer is A.")
    assert text(connect(), Request(CHAT, prefill="The answer is")).text == " A."
    asked = server.calls[0]
    assert asked["messages"][-1] == {"role": "assistant", "content": "The answer is"}
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)


def test_with_a_tokenizer_a_prefill_goes_as_token_ids(server: BadServer, connect: Callable[..., Engine], tiny: Path) -> None:
    from transformers import AutoTokenizer

    text(connect(tokenizer=str(tiny)), Request(CHAT, prefill="The answer is ("))
    rendered = AutoTokenizer.from_pretrained(tiny).decode(server.calls[0]["prompt"])
    assert rendered == "<|user|>Which one?\n<|assistant|>The answer is ("
    assert server.paths == ["/v1/completions"]


def test_a_stop_sequence_the_server_ignores_is_cut_here(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: said("one ### two")
    assert text(connect(), Request(CHAT, Sampling(stop=("###",)))).text == "one "


def top(**tokens: float) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": math.log(p)} for token, p in tokens.items()]


def test_choices_are_read_from_the_first_tokens_logprobs(server: BadServer, connect: Callable[..., Engine]) -> None:
    entries = top(A=0.6, B=0.3)
    server.reply = lambda body, n: said("A", logprobs={"content": [{**entries[0], "top_logprobs": entries}]})
    found = text(connect(), Request(CHAT, choices=("A", "B"))).logprobs
    assert found == pytest.approx({"A": math.log(0.6), "B": math.log(0.3)})
    assert (server.calls[0]["max_tokens"], server.calls[0]["top_logprobs"]) == (1, 20)


def test_a_choice_outside_the_listed_tokens_gets_at_most_what_is_left(
    server: BadServer, connect: Callable[..., Engine]
) -> None:
    server.reply = lambda body, n: said("A", logprobs={"top_logprobs": [{" A": math.log(0.9), "x": math.log(0.05)}]})
    found = text(connect(), Request("q (", choices=("A", "B"))).logprobs
    assert found == pytest.approx({"A": math.log(0.9), "B": math.log(0.05)})


@pytest.mark.parametrize(
    ("word", "logprobs", "kind"), [("", None, "no_logprobs"), ("I", {"content": [{"token": "I", "logprob": -0.1}]}, "choices")]
)
def test_choices_without_usable_logprobs_fail_for_good(
    server: BadServer, connect: Callable[..., Engine], word: str, logprobs: Any, kind: str
) -> None:
    server.reply = lambda body, n: said(word, logprobs=logprobs)
    found = error(connect(), Request(CHAT, choices=("A", "B")))
    assert (found.kind, found.retry, len(server.calls)) == (kind, False, 1)


def test_a_text_is_scored_by_its_echo(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: said("Mix flour and", tokens=4, logprobs={"token_logprobs": [None, -1.5, -2.5, -9.0]})
    found = text(connect(), Request("Mix flour", score=True))
    assert (found.prompt_logprobs, found.prompt_tokens, found.text) == ((-1.5, -2.5), 3, "")
    assert (server.paths[0], server.calls[0]["echo"], server.calls[0]["prompt"]) == ("/v1/completions", True, "Mix flour")


def test_with_a_tokenizer_the_assistants_words_are_scored(
    server: BadServer, connect: Callable[..., Engine], tiny: Path
) -> None:
    server.reply = lambda body, n: said("", logprobs={"token_logprobs": [None, *range(-1, -len(body["prompt"]) - 1, -1)]})
    said_too = ({"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."})
    found = text(connect(tokenizer=str(tiny)), Request(said_too, score=True)).prompt_logprobs
    size = len(server.calls[0]["prompt"])
    assert found is not None
    assert list(found) == list(range(len(found) + 1 - size, 1 - size, -1))  # the template's last token isn't the assistant's


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (said("fine"), "no_logprobs"),
        (said("fine", logprobs={"token_logprobs": [-0.1]}), "no_logprobs"),
        ((400, {}, '{"error": "unknown field: echo"}'), "no_logprobs"),
        (said("a", tokens=2), "empty"),
    ],
)
def test_a_server_that_scores_no_texts_is_told_so(
    server: BadServer, connect: Callable[..., Engine], reply: Any, kind: str
) -> None:
    server.reply = lambda body, n: reply
    found = error(connect(), Request("Mix flour", score=True))
    assert (found.kind, found.retry, len(server.calls)) == (kind, False, 1)


def test_scoring_a_conversation_needs_its_tokenizer(server: BadServer, connect: Callable[..., Engine]) -> None:
    found = error(connect(), Request(CHAT, score=True))
    assert "give `tokenizer` in the model's entry" in str(found)


def test_a_storm_of_429_is_waited_out_as_long_as_the_server_says(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: (429, {"Retry-After": "1"}, "slow down") if n < 8 else said("through")
    start = time.monotonic()
    answers = ask(connect(), [Request(CHAT, seed=n) for n in range(24)])
    assert [answer.text for answer in answers if isinstance(answer, Completion)] == ["through"] * 24
    assert time.monotonic() - start >= 1
    pause = [later - sooner for sooner, later in zip(server.times[7:], server.times[8:], strict=False)]
    assert max(pause) >= 0.9


def test_refusals_lower_the_number_at_once_and_success_raises_it(server: BadServer, connect: Callable[..., Engine]) -> None:
    crowd = threading.Barrier(5)

    def reply(body: dict[str, Any], n: int) -> Any:
        if n < 5:  # so that at least once five are there, however slow the machine
            crowd.wait(60)
        else:
            time.sleep(0.01)
        with server.lock:
            crowded = server.at_once > 4
        if n < 5:
            crowd.wait(60)
        return (429, {}, "too many") if crowded else said("ok")

    server.reply = reply
    engine = connect(concurrency=16)
    answers = ask(engine, [Request(CHAT, seed=n) for n in range(100)])
    assert all(isinstance(answer, Completion) for answer in answers)
    assert server.most_at_once <= 16
    refused = len(server.calls) - 100
    assert 0 < refused < 80


def test_never_more_at_once_than_allowed(server: BadServer, connect: Callable[..., Engine]) -> None:
    three = threading.Barrier(3)

    def reply(body: dict[str, Any], n: int) -> Any:
        three.wait(60)
        return said("ok")

    server.reply = reply
    answers = ask(connect(concurrency=3), [Request(CHAT, seed=n) for n in range(21)])
    assert all(isinstance(answer, Completion) for answer in answers)
    assert server.most_at_once == 3


@pytest.mark.parametrize("trouble", ["truncated", "drop", "json", "shape", "500"])
def test_what_may_pass_is_told_so_after_one_call(server: BadServer, connect: Callable[..., Engine], trouble: str) -> None:
    replies: dict[str, Any] = {"json": (200, {}, "<html>"), "shape": (200, {}, '{"choices": []}'), "500": (500, {}, "oops")}
    server.reply = lambda body, n: replies.get(trouble, trouble)
    assert error(connect()).retry
    assert len(server.calls) == 1


def test_an_error_that_comes_as_an_answer_counts_as_the_status_it_names(
    server: BadServer, connect: Callable[..., Engine]
) -> None:
    busy = 200, {"Retry-After": "0.2"}, '{"error": {"message": "too many requests", "code": 429}}'
    server.reply = lambda body, n: busy if n < 2 else said("ok")
    assert text(connect(), Request(CHAT)).text == "ok"
    waited = server.times[1] - server.times[0]
    assert (len(server.calls), waited >= 0.2) == (3, True), "it is asked again at the server's own pace, and no row fails"
    server.reply = lambda body, n: (200, {}, '{"error": {"message": "bad key", "code": 401}}')
    assert error(connect()).kind == "auth"
    server.reply = lambda body, n: (200, {}, '{"error": {"message": "oops", "code": "internal"}}')
    assert error(connect()).retry


def test_a_server_that_drips_bytes_is_given_up_after_the_time_limit(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: "drip"
    found = error(connect(timeout_s=0.5))
    assert (found.kind, found.retry) == ("timeout", True)


@pytest.mark.soak
def test_a_server_that_only_refuses_is_asked_ever_more_rarely(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: (429, {}, "too many")
    engine = connect()
    engine.submit([(n, Request(CHAT, seed=n)) for n in range(100)])
    time.sleep(12)
    asked = list(server.times)
    assert len(asked) < 30
    late = [later - sooner for sooner, later in itertools.pairwise(asked[15:])]
    assert all(gap > 0.9 for gap in late), late
    assert server.url in engine.waiting
    assert "calls in a row" in engine.waiting


def test_after_many_refusals_an_answer_brings_the_pace_back(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: (429, {}, "too many") if n < 9 else said("ok")
    answers = ask(connect(), [Request(CHAT, seed=n) for n in range(300)])
    assert sum(isinstance(answer, Completion) for answer in answers) == 300


def test_too_long_a_prompt_is_told_as_overflow(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: (400, {}, "This model's maximum context length is 512 tokens.")
    found = error(connect())
    assert (found.kind, found.retry, len(server.calls)) == ("overflow", False, 1)


def test_a_server_that_wants_the_newer_field_gets_it(server: BadServer, connect: Callable[..., Engine]) -> None:
    refusal = (400, {}, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    server.reply = lambda body, n: said("fine") if "max_completion_tokens" in body else refusal
    assert text(connect(), Request(CHAT, Sampling(max_tokens=9))).text == "fine"
    assert server.calls[-1]["max_completion_tokens"] == 9


@pytest.mark.parametrize("choose", [False, True], ids=["max_tokens", "logprobs"])
def test_calls_under_way_use_what_one_of_them_found(server: BadServer, connect: Callable[..., Engine], choose: bool) -> None:
    together = threading.Barrier(6, timeout=30)

    def reply(body: dict[str, Any], n: int) -> Any:
        if body.get("top_logprobs") == 20 if choose else "max_tokens" in body:
            together.wait()  # all six are under way before the first is refused
            name = "top_logprobs: at most 5" if choose else "use 'max_completion_tokens' instead of max_tokens"
            return 400, {}, json.dumps({"error": {"message": name}})
        first = {"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "B", "logprob": -3.0}]}
        return said("A", logprobs={"content": [first]})

    server.reply = reply
    requests = [Request(CHAT, seed=n, choices=("A", "B") if choose else ()) for n in range(6)]
    answers = ask(connect(), requests)
    assert [answer.text for answer in answers if isinstance(answer, Completion)] == ["A"] * 6, answers


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, {"message": "You exceeded your current quota, please check your plan.", "code": "insufficient_quota"}),
        (402, {"message": "Insufficient credits"}),
        (429, {"type": "insufficient_quota"}),
    ],
)
def test_a_spent_account_is_no_rate_limit(
    server: BadServer, connect: Callable[..., Engine], status: int, error: dict[str, str]
) -> None:
    server.reply = lambda body, n: (status, {}, json.dumps({"error": error}))
    (answer,) = ask(connect(), [Request(CHAT)])
    assert isinstance(answer, EngineError)
    assert (answer.kind, answer.retry, len(server.calls)) == ("refused", False, 1)
    assert next(iter(error.values())) in str(answer)


def answered(content: Any, reason: str = "stop", **message: Any) -> Any:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return 200, {}, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answered("fine"), "fine"),
        (answered(""), ""),
        (answered(None, refusal="I can't."), "I can't."),
        (answered([{"type": "text", "text": "Hello "}, {"type": "thinking"}, {"type": "text", "text": "you"}]), "Hello you"),
        (answered("fine", reasoning_content="hm"), "fine"),
        (answered("half", "length"), "half"),
    ],
)  # fmt: skip
def test_an_answer_is_what_it_says(server: BadServer, connect: Callable[..., Engine], reply: Any, expected: str) -> None:
    server.reply = lambda body, n: reply
    assert text(connect(), Request(CHAT)).text == expected


@pytest.mark.parametrize(
    ("reply", "answer", "thought"),
    [
        (answered("<think>\nHm, no.\n</think>\n\nNo, sorry."), "No, sorry.", "Hm, no."),
        (answered("[THINK]Hm[/THINK]Yes"), "Yes", "Hm"),
        (answered("Yes", reasoning_content="Hm"), "Yes", "Hm"),
        (answered("Yes", reasoning="Hm"), "Yes", "Hm"),
        (answered("A tag is written <think>, and ends by </think>."), "A tag is written <think>, and ends by </think>.", None),
    ],
)  # fmt: skip
def test_reasoning_is_kept_apart(
    server: BadServer, connect: Callable[..., Engine], reply: Any, answer: str, thought: str | None
) -> None:
    server.reply = lambda body, n: reply
    found = text(connect(), Request(CHAT))
    assert (found.text, found.thought) == (answer, thought)


@pytest.mark.parametrize(
    ("reply", "message", "retry"),
    [
        (answered(None), "no text: it ended by 'stop'", False),
        (answered(None, "length", reasoning_content="Let me"), "all of `max_tokens` went into its reasoning", False),
        (answered("", "length", reasoning="Let me"), "all of `max_tokens` went into its reasoning", False),
        (answered("", reasoning="Let me"), "no text", False),
        (answered("<think>Let me", "length"), "no text after its reasoning", False),
        (answered(None, "tool_calls", tool_calls=[{"id": "1"}]), "calls a tool", False),
        (answered("Half an ans", "error", refusal=None), 'broke its answer off: "it gives no reason"', True),
        (answered("Half a smile: \ud83d"), "half of a character", True),
        (answered(7), "the content is no text", True),
    ],
)
def test_what_is_no_answer_fails_with_its_reason(
    server: BadServer, connect: Callable[..., Engine], reply: Any, message: str, retry: bool
) -> None:
    server.reply = lambda body, n: reply
    failure = error(connect())
    assert message in str(failure)
    assert failure.retry == retry


def test_the_cap_on_calls_holds_and_counts_tries(server: BadServer, connect: Callable[..., Engine]) -> None:
    answers = ask(connect(max_calls=5), [Request(CHAT, seed=n) for n in range(12)])
    failed = [answer for answer in answers if isinstance(answer, EngineError)]
    assert (len(server.calls), len(failed)) == (5, 7)
    assert {(answer.kind, answer.retry) for answer in failed} == {("spending_cap", False)}
    assert "raise max_calls" in str(failed[0])


@pytest.mark.parametrize("trouble", [(429, {}, "too many"), (400, {}, "use max_completion_tokens, not max_tokens")])
def test_refusals_that_cost_nothing_leave_the_cap_as_it_is(
    server: BadServer, connect: Callable[..., Engine], trouble: Any
) -> None:
    server.reply = lambda body, n: trouble if n < 3 and "max_tokens" in body else said("ok")
    answers = ask(connect(max_calls=5), [Request(CHAT, seed=n) for n in range(5)])
    assert all(isinstance(answer, Completion) for answer in answers), answers


@pytest.mark.parametrize(
    ("cap", "spends"),
    [
        ({"max_calls": 60}, 60),
        ({"max_tokens_total": 600}, 60),
        ({"max_cost": 0.0006, "prices": {"prompt": 1.0, "completion": 1.0}}, 60),
    ],
)
def test_a_cap_holds_over_engines_and_their_restarts(
    server: BadServer, connect: Callable[..., Engine], tmp_path: Path, cap: dict[str, Any], spends: int
) -> None:
    account = {**cap, "spent": str(tmp_path / "spent" / "a")}
    requests = [Request("hi", Sampling(max_tokens=8), seed=n) for n in range(25)]
    replicas = [connect(**account) for _ in range(2)]
    for engine in replicas:
        ask(engine, requests)
    replicas[0].close()
    answers = ask(connect(**account), requests)
    assert spends - 3 <= len(server.calls) <= spends  # the last calls are held for more than they come to
    (capped, *_) = [answer for answer in answers if isinstance(answer, EngineError)]
    assert capped.kind == "spending_cap"
    assert f"raise {next(iter(cap))}" in str(capped)


def test_a_cap_that_was_raised_counts_on_from_what_was_spent(
    server: BadServer, connect: Callable[..., Engine], tmp_path: Path
) -> None:
    spent = str(tmp_path / "spent")
    requests = [Request(CHAT, seed=n) for n in range(10)]
    ask(connect(max_calls=4, spent=spent), requests)
    ask(connect(max_calls=7, spent=spent), requests)
    assert len(server.calls) == 7


def named(model: str) -> Any:
    status, headers, body = said("fine")
    return status, headers, json.dumps({**json.loads(body), "model": model})


@pytest.mark.parametrize(
    "model",
    ["m", "M", "org/m", "m-2024-08-06", "m@main", "m:latest", "m-latest", "m-0613", "m-001", "m-v3-0324", "m-08-2024", ""],
)
def test_a_version_or_path_of_the_models_name_is_the_model(
    server: BadServer, connect: Callable[..., Engine], model: str
) -> None:
    server.reply = lambda body, n: named(model)
    assert text(connect(), Request(CHAT)).text == "fine"


@pytest.mark.parametrize(
    ("asked", "named_otherwise"),
    [
        ("gpt-4", "gpt-5"),
        ("opus-4", "opus-4-1"),
        ("mistral-7b-v0.3", "mistral-7b-v0.2"),
        ("qwen3:8b", "qwen3:32b"),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-05-13"),
    ],
)
def test_another_version_than_was_asked_is_another_model(
    server: BadServer, connect: Callable[..., Engine], asked: str, named_otherwise: str
) -> None:
    server.reply = lambda body, n: named(named_otherwise)
    assert error(connect(asked)).kind == "other_model"
    server.reply = lambda body, n: named(f"org/{asked.replace('-2024', '@2024')}")
    assert text(connect(asked), Request(CHAT)).text == "fine"


def test_another_model_than_was_asked_is_refused_unless_named(server: BadServer, connect: Callable[..., Engine]) -> None:
    for other in ("tiny-llama", "gpt-large-mini", "gpt"):
        server.reply = lambda body, n, other=other: named(other)
        found = error(connect("gpt-large"))
        assert (found.kind, found.retry) == ("other_model", False)
        assert f"answers as {other!r}, asked for 'gpt-large'" in str(found)
        assert text(connect("gpt-large", answers_as=other), Request(CHAT)).text == "fine"


def test_the_cap_on_tokens_is_never_overshot(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: said("ok", tokens=25)
    requests = [Request("hi", Sampling(max_tokens=30), n) for n in range(20)]
    answers = ask(connect(max_tokens_total=200), requests)
    done = sum(isinstance(answer, Completion) for answer in answers)
    assert 5 <= done <= 8
    assert len(server.calls) == done


def test_the_key_is_sent_and_never_shown(
    server: BadServer, connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level("DEBUG")
    server.reply = lambda body, n: (401, {}, f"Incorrect API key provided: {KEY}")
    engine = connect(api_key_env="MY_KEY")
    found = error(engine)
    assert found.kind == "auth"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{found}{found!r}{engine._endpoint!r}{caplog.text}"


def test_a_key_variable_that_is_not_set_is_named(connect: Callable[..., Engine]) -> None:
    with pytest.raises(EngineError, match=r"CAIFLOW_NO_SUCH_KEY \(api_key_env\) isn't set"):
        connect(api_key_env="CAIFLOW_NO_SUCH_KEY")


@pytest.mark.parametrize("end", ["\r", "\r\n", " "])
def test_the_end_of_a_line_behind_a_key_is_no_part_of_it(
    server: BadServer, connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("MY_KEY", KEY + end)
    assert text(connect(api_key_env="MY_KEY"), Request(CHAT)).text == "fine"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", [f"{KEY}\r\nx", f"{KEY}\u2019", f"{KEY} x"])
def test_what_can_be_no_key_is_refused_and_not_shown(
    server: BadServer, connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(EngineError, match=r"the key in MY_KEY \(api_key_env\) has a character that no key has, at") as found:
        connect(api_key_env="MY_KEY")
    assert KEY not in f"{found.value}{found.value!r}"
    assert server.headers == []


@pytest.mark.parametrize("reason", ["length", "max_tokens", "model_length", "model_context_window_exceeded"])
def test_an_answer_that_was_cut_says_so_whatever_the_server_s_word(
    server: BadServer, connect: Callable[..., Engine], reason: str
) -> None:
    server.reply = lambda body, n: said("fine", finish_reason=reason)
    assert text(connect(), Request(CHAT)).finish == "length"


def test_a_key_that_may_not_list_models_is_good_for_calls(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.lists = (403, {}, '{"error": {"message": "Missing scopes: api.model.read"}}')
    assert text(connect(), Request(CHAT)).text == "fine"
    server.reply = lambda body, n: (403, {}, "not for you")
    assert error(connect()).kind == "auth"


def test_a_server_that_sends_elsewhere_says_where_to(server: BadServer, connect: Callable[..., Engine]) -> None:
    server.reply = lambda body, n: (308, {"Location": "https://elsewhere.invalid/v1"}, "")
    assert "it sends elsewhere to https://elsewhere.invalid/v1; correct `base_url`" in str(error(connect()))


def test_a_server_is_met_with_the_first_calls_once(server: BadServer, connect: Callable[..., Engine]) -> None:
    engine = connect()
    assert server.listings == 0
    assert [answer.text for answer in ask(engine, [Request(CHAT)] * 5)] == ["fine"] * 5  # type: ignore[union-attr]
    text(engine, Request(CHAT))
    assert server.listings == 1


def test_no_server_is_told_with_each_call_as_no_fault_of_its_row(connect: Callable[..., Engine]) -> None:
    engine = connect(base_url="http://127.0.0.1:9/v1")
    for _ in range(2):
        found = error(engine)
        assert "no server answers at http://127.0.0.1:9/v1" in str(found)
        assert (found.kind, found.retry) == ("load", False)


def test_closing_gives_up_what_is_under_way_at_once(server: BadServer, connect: Callable[..., Engine]) -> None:
    asked = threading.Event()

    def reply(body: dict[str, Any], n: int) -> str:
        asked.set()
        return "drip"

    server.reply = reply
    engine = connect(timeout_s=3600)
    engine.submit([(n, Request(CHAT)) for n in range(20)])
    assert asked.wait(60)
    engine.close()


def test_a_server_that_restarts_is_waited_for_and_one_that_stays_away_is_not_for_ever(
    connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = {"Connection": "close"}  # a thread of the server's would go on answering on a connection that stays
    with bad_server() as first:
        first.reply = lambda body, n: (200, closing, said("fine")[2])
        engine = connect(base_url=first.url)
        assert text(engine, Request(CHAT)).text == "fine"
        port = int(first.url.split(":")[2].partition("/")[0])
    engine.submit([(0, Request(CHAT))])
    assert engine.step(1.5) == []
    with bad_server(port) as again:
        again.reply = lambda body, n: (200, closing, said("back")[2])
        while not (answers := engine.step(1.0)):
            pass
        assert [answer.text for _, answer in answers if isinstance(answer, Completion)] == ["back"]
    monkeypatch.setattr(openai, "_AWAY_S", 0.2)
    away = error(engine)
    assert away.message.startswith("no server answers: ")
    assert away.kind == "refused"


def test_a_call_that_a_server_won_t_take_while_it_takes_others_is_given_up(
    server: BadServer, connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "_ALONE", 6)
    server.reply = lambda body, n: (503, {}, "out of workers") if "poison" in json.dumps(body) else said("fine")
    engine, answers = connect(), dict[int, Any]()
    poison = Request(({"role": "user", "content": "poison"},))
    engine.submit([(0, poison), *((place, Request(CHAT)) for place in range(1, 40))])
    until = time.monotonic() + 120
    while len(answers) < 40 and time.monotonic() < until:
        answers |= dict(engine.step(1.0))
    assert [answers[place].text for place in range(1, 40)] == ["fine"] * 39
    assert answers[0].kind == "refused"
    assert "out of workers, 6 times, and took other calls meanwhile" in answers[0].message
