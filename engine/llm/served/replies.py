"""What a server's reply to a call means: an answer, a refusal that passes or not, or a lesson on how to ask.

The calls one by one (openai.py) and those of a batch (batch.py) are read here alike. Sends nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Completion, Request
from caiflow.engine.llm.served.chat import Dialect
from caiflow.engine.llm.served.choices import LIKELIHOODS, NoLikelihoods
from caiflow.engine.llm.served.endpoint import Endpoint
from caiflow.engine.llm.served.pace import retry_after_s
from caiflow.engine.llm.served.taught import ASK_ANEW, Taught, keep_taught, read_taught, why_without

_READ_OF_REFUSAL = 1 << 20  # characters of one that are read for what it means
_SPENT = ("insufficient_quota", "exceeded your current quota", "insufficient credits", "billing_hard_limit")
"""What a refusal for being too many says that no waiting helps."""
_TOO_LONG = re.compile(
    r"context.?length|maximum context|too long|available context size|exceeds the maximum number of tokens"
    r"|`inputs` tokens \+ `max_new_tokens`",
    re.I,
)
"""How servers say that a prompt doesn't fit: OpenAI's and vLLM's words, Anthropic's, llama.cpp's, Gemini's, TGI's."""
_BUSY = frozenset({429, 503, 529})
_PASSING = frozenset({408, 409, 425, 500, 502, 504})


class Passing(Exception):
    """A call failed in a way that may pass; `spent` says whether the server may have worked for it."""

    def __init__(self, message: str, kind: str, *, spent: bool = True) -> None:
        super().__init__(message)
        self.kind, self.spent = kind, spent


class Again(Exception):
    """A call is to be put once more: the server is busy or away, or wants it said otherwise.

    `spent` says whether it worked for it; `patience_s` how long calls are put again while it takes none of them.
    """

    def __init__(
        self, message: str, *, busy: bool, retry_after_s: float = 0.0, spent: bool = False, patience_s: float = 900.0
    ) -> None:
        super().__init__(message)
        self.busy, self.retry_after_s, self.spent, self.patience_s = busy, retry_after_s, spent, patience_s


def read_reply(
    dialect: Dialect, request: Request, body: Mapping[str, Any], status: int, headers: Mapping[str, str], text: str
) -> Completion:
    """Return the answer to a call whose JSON was `body`.

    Raises:
        Again: the server is busy, or the dialect has changed its ways.
        Passing: it may pass.
        EngineError: it won't pass.
    """
    _check(dialect, _told(status, text), headers, text[:_READ_OF_REFUSAL], body)
    try:
        return dialect.answer(request, text, likelihoods=LIKELIHOODS in body)
    except NoLikelihoods as lack:
        dialect.leave_out(LIKELIHOODS)
        raise Again(str(lack), busy=False, spent=True) from lack
    except ValueError as error:
        raise Passing(f"the server's answer can't be read: {error}", "bad_answer") from error


def keep_lesson(endpoint: Endpoint, dialect: Dialect, known: int) -> EngineError | None:
    """Keep what calls taught beyond the first `known` fields; return the error for calls that count as another model's now.

    What others were taught meanwhile stays: forgotten, it would make their answers another model's.

    Raises:
        StoreError: it can't be kept.
    """
    added = dialect.without[known:]
    if endpoint.taught is None or not added:
        return None
    named = endpoint.model if endpoint.address_only else ""
    without = dict.fromkeys((*read_taught(endpoint.taught).without, *dialect.without))
    keep_taught(endpoint.taught, Taught(named, tuple(without), endpoint.continues), endpoint.told)
    return EngineError(f"{endpoint.base_url} {why_without(added)}", kind=ASK_ANEW)


def _told(status: int, text: str) -> int:
    """Return the status that an error has in a body where it came as 200, as routers pass on what another server said."""
    if status != 200 or '"choices"' in text or '"error"' not in text:
        return status
    try:
        code = json.loads(text)["error"]["code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return status  # it can't be read as an answer, either
    return code if type(code) is int and 400 <= code < 600 else status


def _check(dialect: Dialect, status: int, headers: Mapping[str, str], text: str, body: Mapping[str, Any]) -> None:
    """Sort a refusal."""
    if status == 200:
        return
    said = f"the server answers {status}: {' '.join(text.split())[:300]}"
    if status in (402, 429) and any(sign in text.lower() for sign in _SPENT):
        raise EngineError(said, "pay for more, or ask another server", kind="refused")
    if status in _BUSY:
        raise Again(said, busy=True, retry_after_s=retry_after_s(headers))
    if status in _PASSING or status >= 500:
        raise Passing(said, "refused", spent=False)
    if dialect.adapt(status, text, body):
        raise Again(said, busy=False)
    if 300 <= status < 400:
        to = f" to {headers['location'][:300]}" if headers.get("location") else ""
        raise EngineError(f"the server answers {status}: it sends elsewhere{to}", "correct `base_url`", kind="refused")
    raise final(status, said, text)


def final(status: int, said: str, text: str) -> EngineError:
    """Return the error for a refusal that won't pass."""
    low = text.lower()
    if status in (401, 403):
        return EngineError(said, "check the key in the variable that api_key_env names", kind="auth")
    if status == 404:
        return EngineError(said, "check `base_url` (up to and with /v1) and the model's name", kind="refused")
    if status in (400, 422) and "echo" in low:
        return EngineError(
            said,
            "the server can't score a text: use one that echoes prompts, as vLLM's, or load the model here",
            kind="no_logprobs",
        )
    if status in (400, 413, 422) and _TOO_LONG.search(text):
        return EngineError(said, "shorten the prompt, or use a model with a longer context", kind="overflow")
    return EngineError(said, kind="refused")
