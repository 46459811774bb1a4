"""The real yaml-language-server, asked over stdio as an editor asks it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LanguageServer:
    """A server of its own, for files of one folder; use as a context manager."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["node", str(program), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._folder = folder
        self._asked = 0
        self._problems: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> LanguageServer:
        text = {
            "completion": {"completionItem": {"documentationFormat": ["markdown"]}},
            "hover": {"contentFormat": ["markdown"]},
        }
        self.ask(
            "initialize", processId=None, rootUri=self._folder.as_uri(), capabilities={"textDocument": text, "workspace": {}}
        )
        self._send({"method": "initialized", "params": {}})
        settings = {"yaml": {"completion": True, "hover": True, "validate": True, "schemaStore": {"enable": False}}}
        self._send({"method": "workspace/didChangeConfiguration", "params": {"settings": settings}})
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def open(self, text: str) -> str:
        """Open a new document with this text; return its address."""
        self._asked += 1
        uri = (self._folder / f"opened{self._asked}.yaml").as_uri()
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        return uri

    def problems(self, text: str) -> list[str]:
        """Return what the server says is wrong with a text."""
        uri = self.open(text)
        while uri not in self._problems:
            self._take()
        return [problem["message"] for problem in self._problems[uri]]

    def completions(self, text: str) -> dict[str, str]:
        """Return what is offered at the `|` of a text, with the documentation of each."""
        uri, place = self._at(text)
        found = self.ask("textDocument/completion", textDocument={"uri": uri}, position=place)
        items = found["items"] if isinstance(found, dict) else found
        return {item["label"]: _words(item.get("documentation")) for item in items}

    def hover(self, text: str) -> str:
        """Return what is shown over the `|` of a text."""
        uri, place = self._at(text)
        found = self.ask("textDocument/hover", textDocument={"uri": uri}, position=place)
        return _words(found["contents"]) if found else ""

    def _at(self, text: str) -> tuple[str, dict[str, int]]:
        before, _, after = text.partition("|")
        return self.open(before + after), {"line": before.count("\n"), "character": len(before.rpartition("\n")[2])}

    def ask(self, method: str, **params: Any) -> Any:
        """Return the answer to a request."""
        self._asked += 1
        number = self._asked
        self._send({"id": number, "method": method, "params": params})
        while True:
            told = self._take()
            if told.get("id") == number and "method" not in told:
                return told.get("result")

    def _take(self) -> dict[str, Any]:
        """Return the next message; what the server asks itself is answered with nothing."""
        assert self._process.stdout is not None
        size = 0
        while line := self._process.stdout.readline().strip():
            if line.lower().startswith(b"content-length:"):
                size = int(line.partition(b":")[2])
        assert size, "the server has ended"
        told: dict[str, Any] = json.loads(self._process.stdout.read(size))
        if told.get("method") == "textDocument/publishDiagnostics":
            self._problems[told["params"]["uri"]] = told["params"]["diagnostics"]
        elif "id" in told and "method" in told:
            items = told["params"].get("items", []) if isinstance(told.get("params"), dict) else []
            self._send({"id": told["id"], "result": [None] * len(items) if items else None})
        return told

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._process.stdin.flush()


def _words(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(map(_words, content))
    return str(content["value"] if isinstance(content, Mapping) else content or "")
