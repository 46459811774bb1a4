"""A real HTTP server on loopback that behaves as badly as its script says."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], str | bytes]


@dataclass
class BadServer:
    """What was asked, and what is to be answered: `reply(body, n)` for the n-th call (from 0), as status, headers and text."""

    url: str = ""
    reply: Callable[[dict[str, Any], int], Reply | str] = lambda body, n: said("fine")
    listed: list[str] = field(default_factory=lambda: ["served"])
    owner: str = "vllm"
    lists: Reply | None = None
    """What is answered to who asks for the models, in place of `listed`."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    listings: int = 0
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def said(text: str, *, tokens: int = 10, **choice: Any) -> Reply:
    """Return a proper answer to either kind of call."""
    body = {
        "choices": [{"text": text, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": tokens - 1, "completion_tokens": 1},
    }
    return 200, {}, json.dumps(body)


@contextlib.contextmanager
def bad_server(port: int = 0) -> Iterator[BadServer]:
    """Serve until the block ends, by default on a port of the system's choice.

    A reply `truncated` breaks off in the body, `drip` never ends, `drop` hangs up.
    """
    state = BadServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            state.listings += 1
            if state.lists is not None:
                self.answer(*state.lists)
                return
            self.answer(200, {}, json.dumps({"data": [{"id": name, "owned_by": state.owner} for name in state.listed]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.calls)
                state.calls.append(body)
                state.paths.append(self.path)
                state.headers.append(dict(self.headers))
                state.times.append(time.monotonic())
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                reply = state.reply(body, number)
            finally:  # before the answer goes out, after which its client may ask anew at once
                with state.lock:
                    state.at_once -= 1
            if isinstance(reply, str):
                self.misbehave(reply)
            else:
                self.answer(*reply)

        def answer(self, status: int, headers: dict[str, str], text: str | bytes) -> None:
            payload = text.encode() if isinstance(text, str) else text
            self.send_response(status)
            for name, value in {"Content-Length": str(len(payload)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has had enough
                self.wfile.write(payload)

        def misbehave(self, how: str) -> None:
            self.close_connection = True
            if how == "drop":
                return
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            if how == "truncated":
                self.wfile.write(b'{"choices": [{"te')
                return
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256  # with few, connections of many at once are refused, which no call then reaches

    server = Server(("127.0.0.1", port), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
