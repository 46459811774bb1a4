"""transformers' own server for one model, held to its word: what a request asks for is done, or refused with the reason.

Owns what stands between clients and that server: the model's name, drawing at a temperature, stops that are no part of the
answer. Run as a program: `python -m caiflow.engine.llm.local.serving FOLDER NAME [OPTION...]` with the server's own options.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import cached_property
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

ASKING = ("/v1/chat/completions", "/v1/completions")
ANSWERING = (*ASKING, "/v1/models", "/health")
"""What is served; the rest of transformers' server would load other models, or draw otherwise than it is asked."""
HONOURED = frozenset(
    {"model", "messages", "prompt", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens", "stop", "stream"}
)
ABOUT_NOTHING = frozenset({"user", "metadata", "store", "service_tier", "stream_options", "parallel_tool_calls"})
"""What doesn't change an answer; it is left out."""
NEUTRAL: Mapping[str, Any] = {
    "n": 1, "best_of": 1, "logprobs": False, "top_logprobs": 0, "prompt_logprobs": 0, "echo": False, "presence_penalty": 0,
    "frequency_penalty": 0, "logit_bias": {}, "suffix": "", "response_format": {"type": "text"}, "tools": [],
    "tool_choice": "none",
}  # fmt: skip
"""Values that ask for nothing; any other of these fields is refused."""
MOST_TOKENS = 1024
"""Length of an answer where the request names none."""


class Refused(Exception):
    """A request that can't be carried out as it was meant."""


class Served:
    """The server's ASGI application, seen through what one model of it can do."""

    def __init__(self, app: App, folder: Path, name: str) -> None:
        self._app, self._folder, self._name = app, folder, name

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
        elif scope["path"] == "/v1/models":
            model = {"id": self._name, "object": "model", "created": int(time.time()), "owned_by": "caiflow"}
            await _say(send, 200, {"object": "list", "data": [model]})
        elif scope["path"] not in ASKING:
            await _say(send, 404, _error(f"{scope['path']} isn't served; ask {' or '.join(ANSWERING)}"))
        else:
            try:
                body = self.body(await _read(receive))
            except Refused as refusal:
                await _say(send, 400, _error(str(refusal)))
                return
            await self._ask(scope, receive, send, body)

    def body(self, sent: bytes) -> dict[str, Any]:
        """Return the request as transformers' server takes it.

        Raises:
            Refused: it asks for something that this server can't do, or for another model.
        """
        try:
            asked = json.loads(sent)
        except ValueError as error:
            raise Refused(f"the request isn't JSON: {error}") from None
        if not isinstance(asked, dict):
            raise Refused("the request isn't a JSON object")
        asked = {name: value for name, value in asked.items() if value is not None and name not in ABOUT_NOTHING}
        if asked.get("model", self._name) != self._name:
            raise Refused(f"no model {asked['model']!r} here; this server has {self._name!r}")
        for name in [name for name in asked if name not in HONOURED]:
            if name not in NEUTRAL or asked.pop(name) != NEUTRAL[name]:
                raise Refused(
                    f"`{name}` isn't supported by transformers' server; leave it out, or use caiflow serve --engine vllm"
                )
        if asked.get("stop") and asked.get("stream"):
            raise Refused("`stop` isn't supported in a stream by transformers' server; leave one of the two out")
        return self._drawn(asked)

    def _drawn(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the request with settings that draw at its temperature, 1 as everywhere where it names none."""
        temperature = float(asked.setdefault("temperature", 1.0))
        asked["max_tokens"] = int(asked.pop("max_completion_tokens", None) or asked.get("max_tokens") or MOST_TOKENS)
        settings = {**self._settings, "do_sample": temperature > 0, "max_new_tokens": asked["max_tokens"], "top_k": 0}
        return {**asked, "model": str(self._folder), "generation_config": json.dumps(settings)}

    @cached_property
    def _settings(self) -> Mapping[str, Any]:
        """Return what the model's own settings say of tokens: how it ends, pads and begins."""
        path = self._folder / "generation_config.json"
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {name: value for name, value in saved.items() if name.endswith("token_id")}

    async def _ask(self, scope: Message, receive: Receive, send: Send, body: dict[str, Any]) -> None:
        sent = json.dumps(body).encode()
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(sent)).encode())]}
        given = False

        async def once() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": sent, "more_body": False}

        answer = send if body.get("stream") else _Named(send, self._name, _stops(body.get("stop"))).send
        await self._app(scope, once, answer)


class _Named:
    """The way back of one whole answer: it names the model as the client does, and ends before its stop."""

    def __init__(self, send: Send, name: str, stops: tuple[str, ...]) -> None:
        self._send, self._name, self._stops = send, name, stops
        self._start: Message = {}
        self._parts: list[bytes] = []

    async def send(self, message: Message) -> None:
        """Take one part of the answer, and hand the whole on with the last."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body"):
            return
        body = self._mended(b"".join(self._parts)) if self._start["status"] == 200 else b"".join(self._parts)
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})

    def _mended(self, sent: bytes) -> bytes:
        answer = json.loads(sent)
        answer["model"] = self._name
        for choice in answer["choices"]:
            holder, name = (choice["message"], "content") if "message" in choice else (choice, "text")
            text = holder[name] or ""
            ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
            if ends:
                holder[name], choice["finish_reason"] = text[: min(ends)], "stop"
        return json.dumps(answer).encode()


def _stops(asked: Any) -> tuple[str, ...]:
    return (asked,) if isinstance(asked, str) else tuple(asked or ())


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


async def _read(receive: Receive) -> bytes:
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


def main(folder: str, name: str, *options: str) -> None:
    """Become the server; the model is loaded before it listens."""
    from transformers.cli.serving import server
    from transformers.cli.transformers import main as transformers

    build = server.build_server
    # its command builds the application itself and takes none; it looks this name up when it does
    server.build_server = lambda *given, **settings: Served(build(*given, **settings), Path(folder), name)
    sys.argv = ["transformers", "serve", folder, *options]
    transformers()


if __name__ == "__main__":
    main(*sys.argv[1:])
