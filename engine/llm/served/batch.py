"""Files of providers' batch APIs: calls as lines of a request file, and lines of answers read back.

Owns two forms: OpenAI's, which `vllm run-batch` and most others take too, and Anthropic's message batches. Sends nothing; what
an answer means is replies.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from caiflow.engine.llm.served.chat import CHAT
from caiflow.engine.llm.served.choices import FORMAT
from caiflow.engine.llm.served.hosts import host_of

MOST_CALLS, MOST_BYTES = 50_000, 190_000_000
"""Of one file, within what the providers take (50,000 and 200 MB; 100,000 and 256 MB)."""
_ANTHROPIC, _OPENAI = "api.anthropic.com", "api.openai.com"
_SAME = ("model", "temperature", "top_k")
_UNSAID = ("seed", FORMAT)
"""Fields that Anthropic's own endpoint for OpenAI's clients does nothing about; a choice is asked for in words as well."""
_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip


class Call(NamedTuple):
    """A call to be put: `key` is the ledger's, in hexadecimal; `path` and `body` are those of a single call."""

    key: str
    path: str
    body: Mapping[str, Any]


class Reply(NamedTuple):
    """What came of a call: status and text as a server answers a single one, or in words why it was never put."""

    key: str
    status: int = 0
    text: str = ""
    unput: str = ""


class UnsayableError(ValueError):
    """A call has a field that the API has no word for."""


def request_files(base_url: str, calls: Sequence[Call]) -> Iterator[tuple[str, str]]:
    """Yield the request files for a server, each as the end of its name and its content.

    Raises:
        UnsayableError: the API can't be asked so.
    """
    if host_of(base_url) == _ANTHROPIC:
        for end, part in _numbered(".json", [_anthropic(call) for call in calls]):
            yield end, '{"requests": [\n' + ",\n".join(part) + "\n]}\n"
        return
    for path in dict.fromkeys(call.path for call in calls):
        url = f"{urlsplit(base_url).path}/{path}"
        lines = [
            {"custom_id": call.key, "method": "POST", "url": url, "body": _renamed(base_url, call)}
            for call in calls
            if call.path == path
        ]
        for end, part in _numbered(".jsonl", lines):
            yield f"{'' if path == CHAT else f'-{path}'}{end}", "".join(f"{line}\n" for line in part)


def _renamed(base_url: str, call: Call) -> Mapping[str, Any]:
    """Return a call's body with the name for its length that all of OpenAI's models know: a batch isn't asked again at once."""
    if host_of(base_url) != _OPENAI or call.path != CHAT:
        return call.body
    return {{"max_tokens": "max_completion_tokens"}.get(name, name): value for name, value in call.body.items()}


def _numbered(suffix: str, requests: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield requests as lines, no more than one file may have, with the end of the file's name."""
    end, number, size, part = suffix, 1, 0, list[str]()
    for request in requests:
        line = json.dumps(request, ensure_ascii=False)
        size += len(line.encode("utf-8", "surrogatepass")) + 2
        if part and (len(part) == MOST_CALLS or size > MOST_BYTES):
            yield end, part
            number, size, part = number + 1, len(line.encode("utf-8", "surrogatepass")) + 2, []
            end = f"-{number}{suffix}"
        part.append(line)
    yield end, part


def _anthropic(call: Call) -> dict[str, Any]:
    """Return a chat call as one of a message batch."""
    body = {name: value for name, value in call.body.items() if name not in _UNSAID}
    turns = list(body.pop("messages", ()))
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    length = body.pop("max_tokens", None) or body.pop("max_completion_tokens", None)
    params = {name: body.pop(name) for name in _SAME if name in body}
    params |= {"max_tokens": length, "messages": [turn for turn in turns if turn["role"] != "system"]}
    params |= {"system": system} if system else {}
    if stop := body.pop("stop", None):
        params["stop_sequences"] = stop
    if (top_p := body.pop("top_p", 1.0)) != 1:  # newer models take a temperature or this, not both
        params["top_p"] = top_p
    if body or not turns:
        raise UnsayableError(", ".join(f"`{name}`" for name in body) or "a plain text")
    return {"custom_id": call.key, "params": params}


def read_line(line: str | bytes) -> Reply:
    """Return what a line of an answer or error file says, in either form.

    Raises:
        ValueError: it is no such line.
    """
    try:
        given = json.loads(line)
        key = given["custom_id"]
        if not isinstance(key, str):
            raise TypeError
        return _read_anthropic(key, given["result"]) if "result" in given else _read_openai(key, given)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no line of a batch's answers, which has `custom_id` and `response` or `result`") from error


def _read_openai(key: str, given: Mapping[str, Any]) -> Reply:
    response = given["response"]
    if response is None or not response.get("status_code"):
        error = given["error"]
        return Reply(key, unput=error if isinstance(error, str) else str(error.get("code") or error["message"]))
    status = int(response["status_code"])
    return Reply(key, status, json.dumps(response.get("body") or given.get("error")))


def _read_anthropic(key: str, result: Mapping[str, Any]) -> Reply:
    if result["type"] == "errored":
        error = result["error"].get("error") or result["error"]
        return Reply(key, _STATUS.get(error["type"], 500), json.dumps({"error": error}))
    if result["type"] != "succeeded":
        return Reply(key, unput=str(result["type"]))
    message = result["message"]
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    thoughts = [part["thinking"] for part in message["content"] if part["type"] == "thinking"]
    reason = {"max_tokens": "length", "refusal": "content_filter"}.get(message["stop_reason"], "stop")
    said = {"content": "".join(texts) if texts else None, "reasoning_content": "".join(thoughts) or None}
    usage = {"prompt_tokens": message["usage"]["input_tokens"], "completion_tokens": message["usage"]["output_tokens"]}
    body = {"model": message["model"], "choices": [{"message": said, "finish_reason": reason}], "usage": usage}
    return Reply(key, 200, json.dumps(body))


class Answers:
    """The answers in files: `replies` by key, one for each; of several lines about a call the first that answers it counts."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.lines = self.doubled = self.unreadable = 0
        self.trouble = ""
        """Where the first line is that can't be read, and why."""

    def read(self, path: Path) -> None:
        """Read a file, JSON Lines of either form."""
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._take(line, f"{path}:{number}")

    def _take(self, line: bytes, place: str) -> None:
        self.lines += 1
        try:
            reply = read_line(line)
        except ValueError as error:
            self.unreadable += 1
            self.trouble = self.trouble or f"{place}: {error}"
            return
        before = self.replies.get(reply.key)
        self.doubled += before is not None
        if before is None or (before.status != 200 and reply.status == 200):
            self.replies[reply.key] = reply
