"""Lines of batch APIs, held against the types of those who take and write them: openai, anthropic, vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest

from caiflow.engine.llm.base import Request, Sampling
from caiflow.engine.llm.served import batch
from caiflow.engine.llm.served.batch import Answers, Call, UnsayableError, read_line, request_files
from caiflow.engine.llm.served.chat import Dialect
from caiflow.engine.llm.served.choices import LIKELIHOODS
from caiflow.engine.llm.served.replies import read_reply

OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com/v1"
TURNS = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Which one?"})
DRAWN = Request(TURNS, Sampling(temperature=0.5, max_tokens=12, stop=("###",)), seed=5)
CHOSEN = Request(TURNS, choices=("A", "B"))


def calls(*requests: Request, without: tuple[str, ...] = ()) -> list[Call]:
    dialect = Dialect("m-1", without=without)
    return [Call(f"{number:032x}", *dialect.call(request)) for number, request in enumerate(requests)]


def lines(base_url: str, *requests: Request) -> list[dict[str, Any]]:
    (content,) = [content for end, content in request_files(base_url, calls(*requests)) if end == ".jsonl"]
    return [json.loads(line) for line in content.splitlines()]


def test_openai_s_models_are_told_their_length_by_the_name_that_all_know() -> None:
    (line,) = lines(OPENAI, DRAWN)
    assert {name: line[name] for name in ("custom_id", "method", "url")} == {
        "custom_id": "0" * 32, "method": "POST", "url": "/v1/chat/completions",
    }  # fmt: skip
    assert line["body"] == {
        "model": "m-1", "messages": [*TURNS], "max_completion_tokens": 12, "temperature": 0.5, "top_p": 1.0, "seed": 5,
        "stop": ["###"],
    }  # fmt: skip
    (other,) = lines("http://here:8000/api/v1", DRAWN)
    assert other["url"] == "/api/v1/chat/completions"
    assert other["body"]["max_tokens"] == 12


def test_a_file_has_calls_of_one_kind_and_no_more_than_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_CALLS", 2)
    found = dict(request_files(OPENAI, calls(DRAWN, DRAWN, Request("plain"), DRAWN, DRAWN, DRAWN)))
    sizes = {end: len(content.splitlines()) for end, content in found.items()}
    assert sizes == {".jsonl": 2, "-2.jsonl": 2, "-3.jsonl": 1, "-completions.jsonl": 1}
    monkeypatch.setattr(batch, "MOST_CALLS", 3)
    (whole,) = [content for _, content in request_files(OPENAI, calls(DRAWN, DRAWN, DRAWN))]
    monkeypatch.setattr(batch, "MOST_BYTES", len(whole) - 1)
    parts = [content for _, content in request_files(OPENAI, calls(DRAWN, DRAWN, DRAWN))]
    assert [len(part.splitlines()) for part in parts] == [2, 1]
    assert "".join(parts) == whole


@pytest.mark.parametrize("request_", [CHOSEN, Request("plain"), Request(TURNS, Sampling(repetition_penalty=1.2))], ids=str)
def test_what_anthropic_has_no_word_for_is_refused(request_: Request) -> None:
    with pytest.raises(UnsayableError, match=r"logprobs|plain|prompt|repetition"):
        list(request_files(ANTHROPIC, calls(request_)))


def test_of_a_call_s_lines_the_first_that_answers_counts(tmp_path: Any) -> None:
    def line(status: int, text: str) -> str:
        body = {"choices": [{"message": {"content": text}}]}
        return json.dumps({"custom_id": "a", "response": {"status_code": status, "body": body}, "error": None})

    (tmp_path / "lines").write_text("\n".join([line(500, "x"), line(200, "first"), "", line(200, "second"), line(400, "y")]))
    answers = Answers()
    answers.read(tmp_path / "lines")
    assert (answers.lines, answers.doubled, answers.unreadable) == (4, 3, 0)
    assert "first" in answers.replies["a"].text


@pytest.mark.parametrize(
    "line", ["", "[]", "null", "{}", '{"custom_id": 1, "response": null}', '{"custom_id": "a"}', "[" * 9999]
)
def test_what_is_no_line_of_answers_is_said(line: str) -> None:
    with pytest.raises(ValueError, match=r"no line of a batch's answers|Expecting value"):
        read_line(line)


@pytest.mark.soak
def test_message_batches_are_what_anthropic_s_own_client_takes_and_gives() -> None:
    pytest.importorskip("anthropic")
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
    from anthropic.types.messages import MessageBatchIndividualResponse
    from pydantic import TypeAdapter

    requests = (DRAWN, CHOSEN, Request(TURNS, Sampling(temperature=1, top_p=0.9, top_k=4)))
    ((_, content),) = request_files(ANTHROPIC, calls(*requests, without=(LIKELIHOODS, "top_logprobs")))
    found = json.loads(content)["requests"]
    for entry in found:
        TypeAdapter(MessageCreateParamsNonStreaming).validate_python(entry["params"])
        assert entry["params"].keys() <= MessageCreateParamsNonStreaming.__annotations__.keys() | {
            "model", "max_tokens", "messages", "system", "temperature", "top_p", "top_k", "stop_sequences",
        }  # fmt: skip
    assert found[0]["params"] == {
        "model": "m-1", "temperature": 0.5, "max_tokens": 12, "messages": [TURNS[1]], "system": "Be kind.",
        "stop_sequences": ["###"],
    }  # fmt: skip
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m-1",
        "stop_reason": "max_tokens", "stop_sequence": None,
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "So."},
        ],
        "usage": {"input_tokens": 9, "output_tokens": 2},
    }  # fmt: skip
    results: list[dict[str, Any]] = [
        {"type": "succeeded", "message": message},
        {"type": "errored", "error": {"type": "error", "error": {"type": "invalid_request_error", "message": "No."}}},
        {"type": "expired"},
        {"type": "canceled"},
    ]
    replies = []
    for result in results:
        given = MessageBatchIndividualResponse.model_validate({"custom_id": "a", "result": result})
        replies.append(read_line(given.model_dump_json()))
    assert [(reply.status, reply.unput) for reply in replies] == [(200, ""), (400, ""), (0, "expired"), (0, "canceled")]
    answer = read_reply(Dialect("m-1"), DRAWN, {}, 200, {}, replies[0].text)
    assert (answer.text, answer.finish, answer.thought) == ("So.", "length", "Hm.")
    assert (answer.prompt_tokens, answer.completion_tokens) == (9, 2)


@pytest.mark.soak
@pytest.mark.vllm
def test_vllm_s_batch_runner_takes_the_lines_and_its_answers_are_read() -> None:
    from vllm.entrypoints.launchers.run_batch import BatchRequestInput, BatchRequestOutput

    begun = Request(TURNS, choices=("A", "B"), prefill="The answer is (")
    for line in lines("http://here:8000/v1", DRAWN, CHOSEN, begun):
        taken = BatchRequestInput.model_validate(line)
        assert taken.url == line["url"]
        assert not taken.body.model_extra, "every field is one that vLLM knows"
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    choice = {"index": 0, "message": {"role": "assistant", "content": "So."}, "finish_reason": "stop"}
    body = {"id": "c", "created": 1, "model": "m-1", "choices": [choice], "usage": usage}
    good = {"status_code": 200, "request_id": "r", "body": body}
    given = BatchRequestOutput.model_validate({"id": "v", "custom_id": "a", "response": good, "error": None})
    reply = read_line(given.model_dump_json())
    assert read_reply(Dialect("m-1"), DRAWN, {}, reply.status, {}, reply.text).text == "So."
    bad = {"status_code": 400, "request_id": "r"}
    given = BatchRequestOutput.model_validate({"id": "v", "custom_id": "a", "response": bad, "error": "URL isn't supported"})
    assert read_line(given.model_dump_json()).status == 400
