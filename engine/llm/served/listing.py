"""Which models a server lists, and what server that tells of. Owns that one request and its bound."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from caiflow.engine.errors import EngineError

if TYPE_CHECKING:
    import httpx

_CONTINUING = ("vllm", "sglang", "caiflow")
_LARGEST_LIST = 8 << 20
"""Bytes of an answer that are read; a list of models is far smaller."""


def key_in(variable: str) -> str:
    """Return the key in an environment variable, without the ends of lines that files leave on it; empty where none is set.

    What no header can carry is refused here: the error of whoever sends it would show it.

    Raises:
        EngineError: kind `load`.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    wrong = next((place for place, sign in enumerate(key, 1) if not "!" <= sign <= "~"), 0)
    if wrong:
        raise EngineError(
            f"the key in {variable} (api_key_env) has a character that no key has, at place {wrong} of {len(key)}",
            "copy it anew, without spaces, line ends and typographic marks",
            kind="load",
        )
    return key


def key_header(key: str) -> dict[str, str]:
    """Return the header that carries a server's key; none without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def ask_listed(address: str, headers: Mapping[str, str], timeout_s: float, *, by_hand: bool) -> httpx.Response:
    """Ask a server for its models; `by_hand` says whether its user named it.

    Raises:
        httpx.HTTPError, httpx.InvalidURL: it doesn't answer.
        EngineError: its name leads where it may not be asked.
    """
    import httpx

    from caiflow.engine.llm.served.pinned import pinned, refuse_packed

    hooks = {"response": [refuse_packed]}
    client = httpx.Client(transport=pinned(address, by_hand=by_hand), timeout=timeout_s, event_hooks=hooks)
    with client, client.stream("GET", f"{address.rstrip('/')}/models", headers=dict(headers)) as response:
        return httpx.Response(response.status_code, content=_bounded(response.iter_bytes()), request=response.request)


def _bounded(chunks: Iterable[bytes]) -> bytes:
    """Return what an answer says; nothing where that is too much."""
    said = bytearray()
    for chunk in chunks:
        said += chunk
        if len(said) > _LARGEST_LIST:
            return b""
    return bytes(said)


def names_of(response: httpx.Response) -> list[str]:
    """Return the names in a server's answer; none where it lists none."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if response.status_code == 200:
            return [str(entry["id"]) for entry in json.loads(response.content).get("data", [])]
    return []


def continues_turns(response: httpx.Response) -> bool:
    """Return whether a server says by its models' owner that it goes on with a turn as vLLM does; hosted APIs refuse to."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return any(entry.get("owned_by") in _CONTINUING for entry in json.loads(response.content)["data"])
    return False


def choose_named(kept: str, listed: list[str]) -> str:
    """Return the model that a bare address means: the one it meant before while that is listed, else the first."""
    return kept if kept in listed or not listed else listed[0]
