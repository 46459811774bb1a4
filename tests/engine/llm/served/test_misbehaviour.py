"""How servers misbehave: each way costs a row a named outcome and no more calls than its tries; nothing wrong is kept."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.flow.row_llm import Asker, LedgeredLLM, Tally
from caiflow.engine.llm.base import Message, ModelSource, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.load import load_engine
from caiflow.engine.store.ledger import Ledger
from support.bad_server import BadServer, bad_server, said

ASKED: list[Message] = [{"role": "user", "content": "Which one?"}]
RETRIES = 1
Outcome = str | tuple[str, bool]
"""What the row gets: a text, or the kind of its failure and whether it may pass."""


def answered(content: Any, reason: Any = "stop", **message: Any) -> Any:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return 200, {}, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})


def without_content(reason: str = "stop", **message: Any) -> Any:
    choice = {"message": {"role": "assistant", **message}, "finish_reason": reason}
    return 200, {}, json.dumps({"choices": [choice]})


def body(**fields: Any) -> Any:
    return 200, {}, json.dumps({**json.loads(str(said("fine")[2])), **fields})


def refusing(status: int, message: str, headers: dict[str, str] | None = None, **error: Any) -> Any:
    return status, headers or {}, json.dumps({"error": {"message": message, **error}})


def once(reply: Any) -> Callable[[dict[str, Any], int], Any]:
    return lambda asked, n: reply if n == 0 else said("fine")


def while_asked(field: str, reply: Any) -> Callable[[dict[str, Any], int], Any]:
    return lambda asked, n: reply if field in asked else said("fine")


PACKED_TWICE = gzip.compress(gzip.compress(b" " * (64 << 20)))


def top(value: Any) -> Any:
    return said(
        "A", logprobs={"content": [{"token": "A", "logprob": value, "top_logprobs": [{"token": "B", "logprob": -3.0}]}]}
    )


TEXTS: dict[str, tuple[Any, Outcome]] = {
    # the connection
    "hangs up": ("drop", ("connection", True)),
    "breaks off within the body": ("truncated", ("connection", True)),
    "drips bytes for ever": ("drip", ("timeout", True)),
    "promises gzip and sends text": ((200, {"Content-Encoding": "gzip"}, "plain"), ("connection", True)),
    "sends gzip": ((200, {"Content-Encoding": "gzip"}, gzip.compress(str(said("fine")[2]).encode())), "fine"),
    "sends more than any answer": ((200, {}, b" " * (33 << 20)), ("bad_answer", True)),
    "packs its answer twice": ((200, {"Content-Encoding": "gzip, gzip"}, PACKED_TWICE), ("connection", True)),
    "packs it as nobody asked": ((200, {"Content-Encoding": "br"}, b"\x8b"), ("connection", True)),
    # the body
    "sends a page": ((200, {}, "<html>Welcome</html>"), ("bad_answer", True)),
    "sends nothing": ((200, {}, ""), ("bad_answer", True)),
    "sends null": ((200, {}, "null"), ("bad_answer", True)),
    "sends a list": ((200, {}, "[]"), ("bad_answer", True)),
    "sends a stream": ((200, {}, 'data: {"choices": [{"delta": {"content": "fi"}}]}\n\ndata: [DONE]\n'), ("bad_answer", True)),
    "sends an error as success": ((200, {}, '{"error": {"message": "overloaded"}}'), ("bad_answer", True)),
    "sends no choice": (body(choices=[]), ("bad_answer", True)),
    "sends a choice without a message": (body(choices=[{"finish_reason": "stop"}]), ("bad_answer", True)),
    "sends bytes that are no text": ((200, {}, b'{"choices": [{"text": "\xff\xfe"'), ("bad_answer", True)),
    "sends two choices": (body(choices=[{"text": "fine"}, {"text": "other"}]), "fine"),
    "sends no usage": (body(usage=None), "fine"),
    "sends a usage without counts": (body(usage={"prompt_tokens": None}), "fine"),
    "sends a usage of words": (body(usage={"prompt_tokens": "many"}), ("bad_answer", True)),
    "sends a usage below nothing": (body(usage={"prompt_tokens": -1_000_000, "completion_tokens": 1}), ("bad_answer", True)),
    "sends a usage without end": (body(usage={"prompt_tokens": float("inf")}), ("bad_answer", True)),
    "sends a usage of a million digits": (
        (200, {}, '{"choices": [{"text": "fine"}], "usage": {"prompt_tokens": 1' + "0" * 10**6 + "}}"),
        ("bad_answer", True),
    ),
    "sends a usage beyond any call": (body(usage={"prompt_tokens": 10**400}), ("bad_answer", True)),
    "sends what is nested too deep": ((200, {}, "[" * 100_000 + "]" * 100_000), ("bad_answer", True)),
    "sends an object that is nested too deep": ((200, {}, '{"choices":' * 50_000 + "1" + "}" * 50_000), ("bad_answer", True)),
    "says what is nested deep": (body(choices=[{"text": json.loads("[" * 400 + "]" * 400)}]), ("empty", False)),
    # the answer
    "says nothing": (answered(None), ("empty", False)),
    "says a number": (answered(7), ("bad_answer", True)),
    "says an object": (answered({"text": "fine"}), ("bad_answer", True)),
    "says it in parts": (answered([{"type": "text", "text": "fi"}, {"type": "image"}, {"type": "text", "text": "ne"}]), "fine"),
    "says a part without a text": (answered([{"type": "text"}]), ("bad_answer", True)),
    "says a number for a part": (answered([{"type": "text", "text": 7}]), ("bad_answer", True)),
    "says an empty list": (answered([]), ("empty", False)),
    "says half a character": (answered("fine \ud83d"), ("refused", True)),
    "only reasons": (answered(None, "length", reasoning_content="Let me"), ("empty", False)),
    "reasons in the text without end": (answered("<think>Let me", "length"), ("empty", False)),
    "reasons in the text": (answered("<think>Let me</think>fine"), "fine"),
    "refuses in a field": (answered(None, refusal="I can't."), "I can't."),
    "refuses in a field, without content": (without_content(refusal="I can't."), "I can't."),
    "has no content": (without_content(), ("empty", False)),
    "has no content, all of it went into reasoning": (without_content("length"), ("empty", False)),
    "calls a tool without content": (without_content("tool_calls", tool_calls=[{"id": "1"}]), ("empty", False)),
    "calls a tool": (answered(None, "tool_calls", tool_calls=[{"id": "1"}]), ("empty", False)),
    "breaks the answer off": (answered("fi", "error"), ("refused", True)),
    "gives the answer up": (answered("fi", "abort"), ("refused", True)),
    "runs out of its own resources": (answered("fi", "insufficient_system_resource"), ("refused", True)),
    "ends for a reason that is no word": (answered("fine", {"type": "stop"}), "fine"),
    "filters the answer": (answered("", "content_filter"), ("refused", False)),
    "filters the answer, and says what for": (answered("", "content_filter: PROHIBITED_CONTENT"), ("refused", False)),
    "filters the answer in other words": (answered("", "SAFETY"), ("refused", False)),
    "answers as a model without end": (body(model="m" + "-1" * 200_000 + "x"), ("other_model", False)),
    "answers as another model": (body(model="other"), ("other_model", False)),
    "goes on behind a stop": (answered("fine### and more"), "fine"),
    # refusals
    "is busy once": (once((429, {}, "too many")), "fine"),
    "is busy until a date that is past": (once((429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "")), "fine"),
    "is busy until soon": (once((503, {"Retry-After": "soon"}, "")), "fine"),
    "is spent": (refusing(429, "You exceeded your current quota", code="insufficient_quota"), ("refused", False)),
    "wants to be paid": (refusing(402, "Insufficient credits"), ("refused", False)),
    "doesn't know the key": (refusing(401, "Incorrect API key provided"), ("auth", False)),
    "forbids": (refusing(403, "Not for you"), ("auth", False)),
    "isn't there": (refusing(404, "model not found"), ("refused", False)),
    "finds it too long": (refusing(400, "maximum context length is 512 tokens"), ("overflow", False)),
    "finds it too long for its slots": (refusing(400, "exceeds the available context size (4096 tokens)"), ("overflow", False)),
    "finds it too long for its window": (
        refusing(400, "The input token count (9) exceeds the maximum number of tokens allowed (8)."),
        ("overflow", False),
    ),
    "finds it too long with its answer": (
        (422, {}, '{"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8. Given: 7 and 2"}'),
        ("overflow", False),
    ),
    "finds it too large": (refusing(413, "the prompt is too long"), ("overflow", False)),
    "fails once": (once((500, {}, "oops")), "fine"),
    "fails": ((500, {}, "oops"), ("refused", True)),
    "isn't reached by its gateway": ((502, {}, "<html>Bad Gateway</html>"), ("refused", True)),
    "takes too long for its gateway": ((504, {}, ""), ("refused", True)),
    "sends elsewhere": ((302, {"Location": "http://127.0.0.1:9/"}, ""), ("refused", False)),
    "says it has nothing": ((204, {}, ""), ("refused", False)),
    "refuses with what is nested too deep": ((400, {}, '{"error":' * 50_000 + '"no"' + "}" * 50_000), ("refused", False)),
    "is a teapot": ((418, {}, "I'm a teapot"), ("refused", False)),
    "wants another name for the length": (while_asked("max_tokens", refusing(400, "use max_completion_tokens")), "fine"),
    "takes no seed": (while_asked("seed", refusing(400, "Unsupported parameter: 'seed'", param="seed")), "fine"),
    "takes no temperature": (while_asked("temperature", refusing(422, "temperature isn't supported")), "fine"),
}
CHOICES: dict[str, tuple[Any, Outcome]] = {
    "gives no log-probabilities": (said("A"), "A"),
    "gives one that is no number": (top(float("nan")), ("bad_answer", True)),
    "gives one above 0": (top(0.7), ("bad_answer", True)),
    "gives one whose power is beyond all numbers": (top(1e4), ("bad_answer", True)),
    "gives one that is a word": (top("high"), ("bad_answer", True)),
    "gives those of other words": (said("I", logprobs={"content": [{"token": "I", "logprob": -0.1}]}), ("choices", False)),
    "has none to give": (while_asked("top_logprobs", refusing(400, "logprobs are not supported")), "fine"),
}
KINDS = {**TEXTS, **CHOICES}


def asking(server: BadServer, folder: Path, name: str) -> Outcome:
    """Return what a row gets of the server, in a process of its own kind: a fresh engine on the ledger of before."""

    async def run() -> str:
        with Ledger(folder, "n") as ledger:
            async with EngineClient([LocalLink(host)]) as client:
                llm = LedgeredLLM(client, ledger, Asker("e", 1, "m", retries=RETRIES), "row", Tally())
                if name in CHOICES:
                    return (await llm.pick(ASKED, ["A", "B"])).text
                return (await llm.chat(ASKED, Sampling(stop=("###",)))).text

    options = {"base_url": server.url, "timeout_s": 1.0 if name.startswith("drips") else 60.0}
    host = EngineHost(lambda: load_engine(ModelSource("m", identity="e", engine="openai", options=options)))
    try:
        return asyncio.run(run())
    except EngineError as error:
        return error.kind, error.retry
    finally:
        host.close()


@pytest.mark.parametrize("name", KINDS)
def test_a_misbehaving_server_costs_a_named_outcome(name: str, tmp_path: Path) -> None:
    reply, expected = KINDS[name]
    with bad_server() as server:
        server.reply = reply if callable(reply) else lambda asked, n: reply
        assert asking(server, tmp_path, name) == expected
        assert len(server.calls) <= RETRIES + 2
        before = len(server.calls)
        server.reply = lambda asked, n: top(-0.1) if name in CHOICES else said("fine")
        again = asking(server, tmp_path, name)
        if isinstance(expected, str):  # an answer is kept, and not asked again
            assert (again, len(server.calls)) == (expected, before)
        else:  # a failure isn't, here: the row asks when it is asked again
            assert again == ("A" if name in CHOICES else "fine")


def test_there_are_enough_kinds(record_property: Callable[[str, object], None]) -> None:
    print(f"{len(KINDS)} kinds of misbehaviour")
    record_property("kinds_of_misbehaviour", len(KINDS))
    assert len(KINDS) >= 30
