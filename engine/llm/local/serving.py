"""An OpenAI-compatible server over the engines that runs use: what a request asks for is done, or refused with the reason.

Owns what stands between a client and an engine: names of models, requests in OpenAI's words, answers in theirs. A seed draws
here what it draws in a run. Never loads a model.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Completion, Message, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
ANSWERING = (CHAT, RAW, "/v1/models", "/health")
HONOURED = frozenset(
    {
        "model", "messages", "prompt", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens",
        "max_completion_tokens", "stop", "n", "stream", "chat_template", "add_generation_prompt", "continue_final_message",
    }
)  # fmt: skip
ABOUT_NOTHING = frozenset({"user", "metadata", "store", "service_tier", "stream_options", "parallel_tool_calls"})
"""What doesn't change an answer; it is left out."""
NEUTRAL: Mapping[str, Any] = {
    "best_of": 1, "logprobs": False, "top_logprobs": 0, "prompt_logprobs": 0, "echo": False, "presence_penalty": 0,
    "frequency_penalty": 0, "logit_bias": {}, "suffix": "", "response_format": {"type": "text"}, "tools": [],
    "tool_choice": "none",
}  # fmt: skip
"""Values that ask for nothing; any other of these fields is refused."""
MOST_TOKENS = 1024
"""Length of an answer where the request names none."""
MOST_ANSWERS = 128
_SEEDS = 1 << 31


class Refused(Exception):
    """A request that can't be carried out as it was meant."""


class Serving:
    """The ASGI application that answers for the models whose engines it is given, by name."""

    def __init__(self, hosts: Mapping[str, EngineHost]) -> None:
        self._hosts = hosts
        self._clients: dict[str, EngineClient] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, or the server's own start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope["path"], receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            for name, host in self._hosts.items():
                self._clients[name] = await stack.enter_async_context(EngineClient([LocalLink(host)]))
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, path: str, receive: Receive, send: Send) -> None:
        if path == "/health":
            await _say(send, 200, {"status": "ok"})
        elif path == "/v1/models":
            made = int(time.time())
            models = [{"id": name, "object": "model", "created": made, "owned_by": "caiflow"} for name in self._hosts]
            await _say(send, 200, {"object": "list", "data": models})
        elif path not in (CHAT, RAW):
            await _say(send, 404, _error(f"{path} isn't served; ask {' or '.join(ANSWERING)}"))
        else:
            try:
                asked = read(await _body(receive), self._hosts)
                answers = await self._ask(asked["model"], list(requests(asked, chat=path == CHAT)))
            except Refused as refusal:
                await _say(send, 400, _error(str(refusal)))
                return
            said = _said(asked, answers, chat=path == CHAT)
            await (_stream(send, said, chat=path == CHAT) if asked.get("stream") else _say(send, 200, said))

    async def _ask(self, model: str, asked: Sequence[Request]) -> list[Completion]:
        found = await asyncio.gather(*(self._clients[model].ask(request) for request in asked))
        answers = [answer for answer in found if isinstance(answer, Completion)]
        if len(answers) < len(found):
            raise Refused(next(str(answer) for answer in found if isinstance(answer, EngineError)))
        return answers


def read(sent: bytes, models: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's fields without those that ask for nothing; `model` is one of `models`.

    Raises:
        Refused: it is no request, asks for what no engine here can do, or for another model.
    """
    try:
        asked = json.loads(sent)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the request isn't JSON that can be read: {error}") from None
    if not isinstance(asked, dict):
        raise Refused("the request isn't a JSON object")
    asked = {name: value for name, value in asked.items() if value is not None and name not in ABOUT_NOTHING}
    asked.setdefault("model", next(iter(models)))
    if asked["model"] not in models:
        raise Refused(f"no model {asked['model']!r} here; this server has {', '.join(map(repr, models))}")
    for name in [name for name in asked if name not in HONOURED]:
        if name not in NEUTRAL or asked.pop(name) != NEUTRAL[name]:
            raise Refused(f"`{name}` isn't supported by this server; leave it out, or use caiflow serve --engine vllm")
    return asked


def requests(asked: Mapping[str, Any], *, chat: bool) -> Iterator[Request]:
    """Yield what an engine is asked for each prompt, `n` times with seeds of their own.

    Raises:
        Refused: a field has a value that means nothing.
    """
    sampling, answers = _sampling(asked), _whole(asked, "n", 1, 1, MOST_ANSWERS)
    seed = _whole(asked, "seed", secrets.randbelow(_SEEDS), -(1 << 63), 1 << 63)
    template = asked.get("chat_template") or ""
    for prompt, prefill in [_conversation(asked)] if chat else [(text, "") for text in _texts(asked)]:
        for number in range(answers):
            yield Request(prompt, sampling, (seed + number) % _SEEDS, prefill, template=template)


def _sampling(asked: Mapping[str, Any]) -> Sampling:
    stop = asked.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in stops):
        raise Refused(f"`stop` is a text or a list of texts, got {stop!r}")
    longest = asked.get("max_completion_tokens", asked.get("max_tokens", MOST_TOKENS))
    return Sampling(
        temperature=_number(asked, "temperature", 1.0, 0.0),
        top_p=_number(asked, "top_p", 1.0, 0.0, 1.0),
        top_k=max(0, _whole(asked, "top_k", 0, -1, 1 << 31)),
        min_p=_number(asked, "min_p", 0.0, 0.0, 1.0),
        max_tokens=_whole({"max_tokens": longest}, "max_tokens", MOST_TOKENS, 1, 1 << 31),
        repetition_penalty=_number(asked, "repetition_penalty", 1.0, 1e-3),
        stop=stops,
    )


def _number(asked: Mapping[str, Any], name: str, default: float, low: float, high: float = 1e9) -> float:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused(f"`{name}` is a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def _whole(asked: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(f"`{name}` is a whole number from {low} to {high}, got {value!r}")
    return value


def _conversation(asked: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    """Return the turns of a chat, and the beginning of the answer where the last turn is to be gone on with."""
    given = asked.get("messages")
    if not isinstance(given, list) or not given:
        raise Refused("`messages` is a list of turns, each with `role` and `content`")
    turns = tuple(_turn(turn) for turn in given)
    if asked.get("continue_final_message"):
        return turns[:-1], turns[-1]["content"]
    if asked.get("add_generation_prompt") is False:
        raise Refused("`add_generation_prompt: false` isn't supported without `continue_final_message: true`")
    return turns, ""


def _turn(turn: Any) -> Message:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or not isinstance(content, str):
        raise Refused(f"a turn has a `role` and a text as `content`, got {json.dumps(turn)[:200]}")
    return {"role": turn["role"], "content": content}


def _texts(asked: Mapping[str, Any]) -> list[str]:
    given = asked.get("prompt")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Refused("`prompt` is a text or a list of texts; token ids aren't supported by this server")
    return texts


# ------------------------------------------------------------------------------------------------------ answers


def _said(asked: Mapping[str, Any], answers: Sequence[Completion], *, chat: bool) -> dict[str, Any]:
    used = [sum(answer.prompt_tokens for answer in answers), sum(answer.completion_tokens for answer in answers)]
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": asked["model"],
        "choices": [_choice(number, answer, chat=chat) for number, answer in enumerate(answers)],
        "usage": {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)},
    }


def _choice(number: int, answer: Completion, *, chat: bool) -> dict[str, Any]:
    ended = {"index": number, "finish_reason": answer.finish, "logprobs": None}
    thought = {"reasoning_content": answer.thought} if answer.thought else {}
    message = {"role": "assistant", "content": answer.text, **thought}
    return {**ended, "message": message} if chat else {**ended, "text": answer.text}


async def _stream(send: Send, said: Mapping[str, Any], *, chat: bool) -> None:
    """Send an answer as events: each choice whole, then its end."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    shared = {**said, "object": "chat.completion.chunk" if chat else "text_completion"}
    del shared["usage"]
    for choice in said["choices"]:
        head = {"index": choice["index"], "logprobs": None}
        texts = {"delta": choice["message"]} if chat else {"text": choice["text"]}
        nothing: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        for part in ({**head, **texts, "finish_reason": None}, {**head, **nothing, "finish_reason": choice["finish_reason"]}):
            await _event(send, json.dumps({**shared, "choices": [part]}))
    await _event(send, "[DONE]")
    await send({"type": "http.response.body", "body": b""})


async def _event(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _say(send: Send, status: int, body: Mapping[str, Any]) -> None:
    sent = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(sent)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sent})
