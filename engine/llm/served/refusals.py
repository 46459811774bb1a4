"""Which fields of a call a server's refusal names as ones that it doesn't take. Reads the refusal; changes no call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

PREFILL_FIELDS = ("add_generation_prompt", "continue_final_message")
"""By which vLLM's server and its like go on with a turn that has begun."""
_LIKELIHOOD_FIELDS = ("logprobs", "top_logprobs")
_SPARED = ("seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", *PREFILL_FIELDS, *_LIKELIHOOD_FIELDS)
"""Fields that a call can do without: the answers are drawn otherwise, or a prefill or a choice is asked for in words."""
_NOT_TAKEN = re.compile(
    r"not\W+(?:\w+\W+){0,2}(?:support|permit|allow|accept|recogni|available|expected)|n't (?:support|accept|take|allow)"
    r"|un(?:support|recogni|expected|known|available)|extra|only the default|deprecated|no longer|no such|forbidden",
    re.I,
)
"""How servers say that they don't take a field, rather than its value."""
_NAMES = ("param", "parameter", "field")
_TEXTS = ("message", "msg", "detail", "error")


def refused_fields(text: str, body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields of `body` that a refusal names and that a call can do without; those that go together, together."""
    candidates = [name for name in _SPARED if name in body and "echo" not in body]
    found: set[str] = set()
    for said, named in _told(text):
        if not _NOT_TAKEN.search(said):
            continue
        named = named if named in body else ""
        found |= {name for name in candidates if (name == named if named else re.search(rf"(?<!\w){name}(?!\w)", said))}
    for together in (PREFILL_FIELDS, _LIKELIHOOD_FIELDS):
        if found & {*together}:
            found |= {*together} & body.keys()
    return tuple(name for name in candidates if name in found)


def _told(text: str) -> Iterator[tuple[str, str]]:
    """Yield each thing that a refusal says, with the field it is about where that is told apart; what it echoes is left out."""
    try:
        told = [*_entries(json.loads(text))]
    except (ValueError, RecursionError):
        told = [(text, "")]
    yield from told


def _entries(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield value, ""
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)
    elif isinstance(value, Mapping):
        said = " ".join(str(value[name]) for name in (*_TEXTS, "type", "code") if isinstance(value.get(name), str))
        place = value.get("loc")
        named = next((str(value[name]) for name in _NAMES if value.get(name)), "")
        yield said, named.rpartition(".")[2] or (str(place[-1]) if isinstance(place, list) and place else "")
        for name in _TEXTS:
            if not isinstance(value.get(name), str):
                yield from _entries(value.get(name))
