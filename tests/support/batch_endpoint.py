"""A server on loopback that answers calls one by one and as batches, as strictly as a provider: files, batches, their output.

A request file with a line that a provider refuses fails as a whole.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from caiflow.engine.identity import digest

KNOWN = {
    "model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "logprobs", "top_logprobs", "response_format",
}  # fmt: skip
OF_VLLM = {"add_generation_prompt", "continue_final_message"}


@dataclass
class BatchEndpoint:
    """What was sent, and what becomes of each call: `fate(n)` is `answer`, `expire`, `break` or `lose`."""

    url: str = ""
    fate: Callable[[int], str] = lambda n: "answer"
    files: dict[str, str] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: int = 0
    """Those put one by one."""
    owner: str = "openai"


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """Return what the model says to a call, which its words, sampling and seed decide."""
    asked = digest({name: value for name, value in body.items() if name != "model"})
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": f"said {asked[:12]}"}}
    if body.get("logprobs"):
        first = int(asked[:2], 16) / 256 * 2 + 0.1
        tops = [{"token": token, "logprob": value, "bytes": None} for token, value in (("A", -first), ("B", -2.2 + first))]
        choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {
        "id": f"chatcmpl-{asked[:8]}", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{**choice, "finish_reason": "stop"}], "usage": usage,
    }  # fmt: skip


def checked(text: str, endpoint: str, known: set[str]) -> list[dict[str, Any]]:
    """Return the requests of a file.

    Raises:
        ValueError: a provider refuses the file.
    """
    lines = [json.loads(line) for line in text.splitlines()]
    ids = {line["custom_id"] for line in lines}
    if len(ids) != len(lines) or not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids):
        raise ValueError("custom_id")
    if len({line["body"]["model"] for line in lines}) != 1:
        raise ValueError("one model a file")
    for line in lines:
        if set(line) != {"custom_id", "method", "url", "body"} or (line["method"], line["url"]) != ("POST", endpoint):
            raise ValueError("method or url")
        if unknown := line["body"].keys() - known:
            raise ValueError(f"unknown fields {unknown}")
    return lines


def _output(state: BatchEndpoint, lines: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    good, bad = [], []
    for number, line in enumerate(lines):
        made: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": line["custom_id"], "response": None, "error": None}
        fate = state.fate(number)
        if fate == "answer":
            made["response"] = {"status_code": 200, "request_id": "r", "body": answer(line["body"])}
            good.append(json.dumps(made))
        elif fate == "expire":
            made["error"] = {"code": "batch_expired", "message": "This request could not be executed in time."}
            bad.append(json.dumps(made))
        elif fate == "break":
            error = {"error": {"message": "The server had an error", "type": "server_error"}}
            made["response"] = {"status_code": 500, "request_id": "r", "body": error}
            bad.append(json.dumps(made))
    return good[::-1], bad  # in any order, say the providers


@contextlib.contextmanager
def batch_endpoint() -> Iterator[BatchEndpoint]:
    """Serve until the block ends."""
    state = BatchEndpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def reply(self, value: Any, status: int = 200) -> None:
            payload = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def do_GET(self) -> None:
            _, _, kind, *rest = self.path.split("/")
            if kind == "models":
                self.reply({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": state.owner}]})
            elif kind == "files":
                self.reply(state.files[rest[0]])
            else:
                self.reply(state.batches[rest[0]])

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/files":
                self.keep(sent)
            elif self.path == "/v1/batches":
                self.carry_out(json.loads(sent))
            else:
                state.calls += 1
                self.reply(answer(json.loads(sent)))

        def keep(self, sent: bytes) -> None:
            form = BytesParser().parsebytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + sent)
            parts = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in form.walk()
            }
            assert parts["purpose"] == b"batch"
            name = f"file-{len(state.files)}"
            state.files[name] = parts["file"].decode()
            about = {"id": name, "object": "file", "bytes": len(parts["file"]), "created_at": 1, "filename": "f.jsonl"}
            self.reply({**about, "purpose": "batch", "status": "processed"})

        def carry_out(self, asked: dict[str, Any]) -> None:
            name = f"batch_{len(state.batches)}"
            made = {"id": name, "object": "batch", "created_at": 1, "status": "failed", **asked}
            with contextlib.suppress(ValueError, KeyError):
                known = KNOWN | OF_VLLM if state.owner == "vllm" else KNOWN
                good, bad = _output(state, checked(state.files[asked["input_file_id"]], asked["endpoint"], known))
                state.files |= {f"{name}-out": "\n".join(good) + "\n", f"{name}-errors": "\n".join(bad) + "\n"}
                ids = {"output_file_id": f"{name}-out", "error_file_id": f"{name}-errors"}
                made |= {"status": "expired" if bad else "completed", **ids}
            state.batches[name] = made
            self.reply(made)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
