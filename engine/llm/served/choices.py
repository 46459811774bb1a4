"""A choice among given words, asked of a server: by the log-probabilities of the first token, or by its own word as JSON.

Owns the fields, the words and the reading of both; that a server gives no log-probabilities is found by asking (openai.py).
Sends nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from caiflow.engine.errors import EngineError

LIKELIHOODS, FORMAT = "logprobs", "response_format"
"""The fields that ask for log-probabilities, and for JSON of a given shape; a server may do without either."""
LONGEST_WORD = 512
"""Tokens that a server may take for its word: some think first, or explain."""


class NoLikelihoods(Exception):
    """The server answered a choice, and gives no log-probabilities."""


_JSON = re.compile(r"\{[^{}]*\}")


def likely(path_is_raw: bool, top: int) -> dict[str, Any]:
    """Return the fields that ask for the first token's log-probabilities."""
    return {LIKELIHOODS: top} if path_is_raw else {LIKELIHOODS: True, "top_logprobs": top}


def word_format(choices: Sequence[str]) -> dict[str, Any]:
    """Return the field that has a server answer with one of the choices, as JSON."""
    answer = {"type": "string", "enum": list(choices)}
    schema = {"type": "object", "properties": {"answer": answer}, "required": ["answer"], "additionalProperties": False}
    return {FORMAT: {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": schema}}}


def wanted_word(choices: Sequence[str]) -> str:
    """Return the words that ask for the same."""
    return f'Reply with one of these and nothing else, as JSON {{"answer": "..."}}: {", ".join(choices)}.'


def word_of(said: str) -> str:
    """Return what an answer in JSON says; any other as it stands."""
    for found in reversed(_JSON.findall(said)):
        with suppress(ValueError, KeyError, TypeError):
            return str(json.loads(found)["answer"])
    return said


def first_token(choice: Mapping[str, Any], *, answered: bool) -> dict[str, float]:
    """Return the given log-probabilities of the answer's first token, by token text.

    Raises:
        NoLikelihoods: the server gives none, though it answered.
        EngineError: it gives neither.
    """
    given = choice.get("logprobs") or {}
    try:
        if given.get("content"):
            first = given["content"][0]
            entries: Iterable[tuple[str, float]] = [(e["token"], e["logprob"]) for e in (first, *first.get("top_logprobs", ()))]
        else:
            entries = given["top_logprobs"][0].items()
        found = {str(token): float(value) for token, value in entries}
        if any(value > 0 for value in found.values()):
            raise ValueError(f"a log-probability above 0 in {found}")
        return found
    except (LookupError, TypeError, AttributeError) as error:
        lack = "the server gives no log-probabilities"
        if answered:
            raise NoLikelihoods(lack) from error
        raise EngineError(f"{lack} and no answer", "ask another model", kind="no_logprobs") from error


def choice_logprobs(choices: Iterable[str], given: Mapping[str, float]) -> dict[str, float]:
    """Return each choice's log-probability; one that isn't among the given tokens gets the most it can have.

    Raises:
        EngineError: none of the choices is among them.
    """
    stripped: dict[str, float] = {}
    for token, value in given.items():
        stripped[token.strip()] = max(value, stripped.get(token.strip(), -math.inf))
    found = {choice: given.get(choice, stripped.get(choice.strip(), math.nan)) for choice in choices}
    if all(math.isnan(value) for value in found.values()):
        raise EngineError(f"none of the choices {list(found)} is among the likeliest tokens {list(given)[:8]}", kind="choices")
    rest = max(1.0 - sum(math.exp(value) for value in given.values()), 1e-9)
    most = min(min(given.values()), math.log(rest))
    return {choice: most if math.isnan(value) else value for choice, value in found.items()}
