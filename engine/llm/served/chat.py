"""What is said to an OpenAI-compatible server and what its answers mean.

Owns the two calls (chat completions and completions), the fields that only some servers know, and the reading of answers;
how a choice is asked and read is in choices.py. Makes no call itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Completion, Request
from caiflow.engine.llm.render import Rendered, Renderer, scored_completion, thought_apart, unanswered
from caiflow.engine.llm.served.choices import (
    FORMAT,
    LIKELIHOODS,
    LONGEST_WORD,
    choice_logprobs,
    first_token,
    likely,
    wanted_word,
    word_format,
    word_of,
)
from caiflow.engine.llm.served.refusals import PREFILL_FIELDS, refused_fields
from caiflow.engine.llm.stops import Stops

CHAT, RAW = "chat/completions", "completions"
_TOP = 20
"""How many of the likeliest tokens' log-probabilities are asked for: the most that common servers give."""
_SEEDS = (1 << 31) - 1


class Dialect:
    """Speaks to one server about one model.

    With a `renderer`, whatever the chat call can't say everywhere (a prefill, a template, choices after a prefill) goes as
    token ids to the completions call; without one, through the fields that vLLM and its like know. A server that doesn't
    (`continues` is false, or it refuses them) is asked in words to go on from a prefill. One that gives no log-probabilities is
    asked for its own word where there is a choice.
    """

    def __init__(
        self,
        model: str,
        renderer: Renderer | None = None,
        answers_as: str = "",
        without: tuple[str, ...] = (),
        *,
        continues: bool = True,
        template_variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._continues = continues
        self.without = without
        """Fields that the server refuses or does nothing about, in the order in which that showed."""
        self._answers_as = answers_as
        self._renderer = renderer
        self._template_variables = template_variables or {}
        self._length = "max_tokens"
        self._top: dict[str, int] = {CHAT: _TOP, RAW: _TOP}

    def call(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Return the path and the JSON body that ask for `request`.

        Raises:
            EngineError: the renderer can't render it.
        """
        if request.score:
            return RAW, {"model": self.model, **self._scoring(request)}
        path = RAW if self._raw(request) else CHAT
        fields = {**self._what(request), **self._how(request, path)}
        return path, {"model": self.model, **{name: value for name, value in fields.items() if name not in self.without}}

    def learn(self, request: Request) -> None:
        """Leave out, from the first call with a prefill on, the fields of it that this server is not known to take."""
        if request.prefill and not self._continues and not request.score and not self._raw(request):
            self.leave_out(*PREFILL_FIELDS)

    def leave_out(self, *fields: str) -> None:
        """Put calls without these fields from here on, and whatever they ask for in words."""
        self.without += tuple(name for name in fields if name not in self.without)

    def most_tokens(self, request: Request) -> tuple[int, int]:
        """Return a generous guess of a call's tokens: one per two bytes asked, and the longest answer."""
        text = request.prompt if isinstance(request.prompt, str) else "".join(message["content"] for message in request.prompt)
        asked = len(text.encode("utf-8", "surrogatepass")) // 2 + 16
        if request.choices or request.score:
            return asked, LONGEST_WORD if request.choices and self._by_word else 1
        return asked, request.sampling.max_tokens

    def adapt(self, status: int, text: str, body: Mapping[str, Any]) -> bool:
        """Change ways after a refusal that names a field of `body`; say whether a call as they are now is worth a try.

        Of several calls under way together, the first changes the ways, and all are worth it.
        """
        if status not in (400, 422):
            return False
        if "max_completion_tokens" in text and "messages" in body and "max_tokens" in body:
            self._length = "max_completion_tokens"
            return True
        if "logprobs" in text and _TOP in (body.get("top_logprobs"), body.get("logprobs")):
            self._top[RAW], self._top[CHAT] = 5, 5
            return True
        if FORMAT in body and FORMAT in text:
            self.leave_out(FORMAT)
            return True
        refused = refused_fields(text, body)
        self.leave_out(*refused)
        return bool(refused)

    def answer(self, request: Request, text: str, *, likelihoods: bool = True) -> Completion:
        """Read a server's answer; `likelihoods` says whether a choice was asked for by them.

        Raises:
            ValueError: it isn't what the API promises.
            EngineError: the server filtered it, or gives no log-probabilities that were asked for.
        """
        try:
            body = json.loads(text)
            choice = body["choices"][0]
            message = choice if "text" in choice else choice["message"]
            said = choice["text"] if "text" in choice else message.get("content")
            reason = ended if isinstance(ended := choice.get("finish_reason"), str) else None
            usage = body.get("usage") or {}
            counts = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no choices[0] with a text in {text[:200]!r}") from error
        except RecursionError as error:
            raise ValueError(f"it is nested too deep: {text[:200]!r}") from error
        self._check_model(body.get("model"))
        _refuse_unfinished(reason, choice.get("error") or body.get("error"))
        if request.score:
            return self._scored(request, choice, counts[0])
        if request.choices and likelihoods:
            found = choice_logprobs(request.choices, first_token(choice, answered=bool(said)))
            return Completion(max(found, key=found.__getitem__), "stop", *counts, found)
        continued = request._replace(prefill="") if self._in_words(request) else request
        said, thought = _apart(continued, _spoken(said, message, reason), message)
        said, finish = _trimmed(request, said, reason)
        return Completion(word_of(said) if request.choices else said, finish, *counts, thought=thought)

    @property
    def _by_word(self) -> bool:
        """Whether a choice is asked for as a word, for want of log-probabilities."""
        return LIKELIHOODS in self.without

    def _check_model(self, named: Any) -> None:
        """Refuse the answer of another model than was asked; a path before a name makes no other, nor a version that one lacks.

        Raises:
            EngineError: kind `other_model`.
        """
        known = [name for name in (self.model, self._answers_as) if name]
        name = str(named)
        if not named or not known or (len(name) < _LONGEST_NAME and any(_same_model(name, one) for one in known)):
            return
        raise EngineError(
            f"the server answers as {name[:_LONGEST_NAME]!r}, asked for {self.model!r}",
            "correct `source`, or give `answers_as` where that is its own name for the same model",
            kind="other_model",
        )

    def _scoring(self, request: Request) -> dict[str, Any]:
        """Return the fields that have a server echo a prompt with its log-probabilities."""
        if self._renderer is None and (request.prefill or not isinstance(request.prompt, str)):
            raise EngineError(
                "which tokens of a served model's text are the answer's is known from its tokenizer alone",
                "give `tokenizer` in the model's entry",
                kind="template",
            )
        prompt = self._renderer.scored(request).ids if self._renderer else request.prompt
        return {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}

    def _scored(self, request: Request, choice: Mapping[str, Any], prompt_tokens: int) -> Completion:
        """Return what the server says of the prompt's scored tokens.

        Raises:
            EngineError: the server gives those of its answer at the most.
        """
        plain = Rendered([0] * prompt_tokens, [0] + [1] * (prompt_tokens - 1))
        scored = self._renderer.scored(request) if self._renderer else plain
        size = len(scored.ids)
        if size == 1:
            raise EngineError("the text is too short: it has no token to score", "leave it out", kind="empty")
        given = choice.get("logprobs")
        fields = given if isinstance(given, Mapping) else {}
        values, tops = ((fields.get(name) or [])[1:size] for name in ("token_logprobs", "top_logprobs"))
        if len(values) + 1 != size or any(value is None for value in values):
            raise EngineError(
                "the server gives no log-probabilities of the prompt (`echo` with `logprobs` on /completions)",
                "use a server that does, as vLLM's, or load the model here",
                kind="no_logprobs",
            )
        best = [max(top.values()) if top else math.inf for top in tops] or [math.inf] * len(values)
        return scored_completion(scored, [(value, value >= most) for value, most in zip(values, best, strict=True)])

    def _raw(self, request: Request) -> bool:
        if isinstance(request.prompt, str) or self._renderer is None:
            return isinstance(request.prompt, str)
        return bool(request.prefill or request.template or request.choices) or self._renderer.spells_tokens(request.prompt)

    def _what(self, request: Request) -> dict[str, Any]:
        if self._raw(request):
            if self._renderer is not None:
                return {"prompt": self._renderer.ids(request)}
            return {"prompt": f"{request.prompt}{request.prefill}"}
        messages = [dict(message) for message in request.prompt if isinstance(message, Mapping)]
        asked: dict[str, Any] = {"messages": messages}
        if request.template:
            asked["chat_template"] = request.template
        if self._template_variables:
            asked["chat_template_kwargs"] = dict(self._template_variables)
        if request.prefill and self._in_words(request):
            messages[-1]["content"] = f"{messages[-1]['content']}{_in_words(request, by_word=self._by_word)}"
        elif request.choices and self._by_word and not request.prefill:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{wanted_word(request.choices)}"
        elif request.prefill:
            messages.append({"role": "assistant", "content": request.prefill})
            asked |= dict(zip(PREFILL_FIELDS, (False, True), strict=True))
        return asked

    def _in_words(self, request: Request) -> bool:
        """Return whether a prefill is asked for in words, which stand at the end of what the user says."""
        if self._raw(request) or not set(PREFILL_FIELDS) <= set(self.without):
            return False
        last = request.prompt[-1] if request.prompt else None
        return isinstance(last, Mapping) and last["role"] == "user"

    def _how(self, request: Request, path: str) -> dict[str, Any]:
        length = self._length if path == CHAT else "max_tokens"
        if request.choices and not self._by_word:
            return {length: 1, "temperature": 0.0, **likely(path == RAW, self._top[path])}
        if request.choices:
            begun = path == RAW or (request.prefill and not self._in_words(request))
            return {length: LONGEST_WORD, "temperature": 0.0, **({} if begun else word_format(request.choices))}
        sampling = request.sampling
        fields: dict[str, Any] = {
            length: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed & _SEEDS,
        }
        extras = {
            "top_k": (sampling.top_k, 0),
            "min_p": (sampling.min_p, 0),
            "repetition_penalty": (sampling.repetition_penalty, 1),
        }
        fields |= {name: value for name, (value, off) in extras.items() if value != off}
        return {**fields, "stop": list(sampling.stop)} if sampling.stop else fields


def _refuse_unfinished(reason: str | None, why: Any) -> None:
    """Refuse an answer that its server filtered, or broke off: its text isn't what the model had to say.

    Raises:
        EngineError: kind `refused`; one that was broken off may come whole.
    """
    if (reason or "").lower().startswith(_FILTERED):
        raise EngineError("the server filtered its answer", kind="refused")
    if reason in _BROKEN_OFF:
        told = json.dumps(why or "it gives no reason")[:300]
        raise EngineError(f"the server broke its answer off: {told}", kind="refused", retry=True)


_FILTERED = ("content_filter", "safety", "sensitive", "prohibited_content", "recitation", "blocklist")
"""How `finish_reason` begins of answers that were filtered: OpenAI's word, Gemini's and Zhipu's."""
_BROKEN_OFF = frozenset({"error", "abort", "network_error", "insufficient_system_resource"})
"""`finish_reason` of answers that were broken off: Mistral's and routers', vLLM's and SGLang's, Zhipu's, DeepSeek's."""
_CUT = frozenset({"length", "max_tokens", "model_length", "model_context_window_exceeded"})
"""`finish_reason` of answers with more to come: OpenAI's, Anthropic's, Mistral's and Zhipu's."""


def _count(value: Any) -> int:
    """Return a number of tokens; none where a server doesn't tell.

    Raises:
        ValueError: it is none that a call can have, by which a spending cap would never be reached, or at once.
    """
    if not value:
        return 0
    number = float(value) if isinstance(value, str) else value
    if not 0 <= number <= _MOST_TOKENS:
        raise ValueError("the usage is no number of tokens that a call can have")
    return int(number)


_MOST_TOKENS = 1 << 32
_LONGEST_NAME = 300
_VERSION = re.compile(r"[@:].+|(?:-v\d[\d.]*)?(?:-(?:\d{3,}|\d{2,4}-\d\d(?:-\d{2,4})?|\d\d-\d{4}))?")
"""What servers put behind a model's name: a revision, a tag, a date or a long number. A short one is another model's name."""


def _same_model(one: str, other: str) -> bool:
    """Return whether two names mean one model: the same, or with a version that the other leaves open."""
    bare = (re.sub("[-:]latest$", "", name.lower().rstrip("/").rpartition("/")[2]) for name in (one, other))
    short, long = sorted((re.sub(r"@(?=\d{4})", "-", name) for name in bare), key=len)
    return long == short or (long.startswith(short) and _VERSION.fullmatch(long[len(short) :]) is not None)


def _in_words(request: Request, *, by_word: bool) -> str:
    """Return the end of a user's turn that asks for what comes after a prefill."""
    next_one = f" That is one of these: {', '.join(request.choices)}." if request.choices else ""
    if request.choices and by_word:
        return (
            f"\n\nYour answer has begun as follows, and a word is missing. {wanted_word(request.choices)}\n\n{request.prefill}"
        )
    return f"\n\nYour answer has begun as follows. Write what comes next, and nothing before it.{next_one}\n\n{request.prefill}"


def _spoken(said: Any, message: Mapping[str, Any], reason: Any) -> str:
    """Return the text of an answer: its content, the texts among its parts, or else the refusal.

    Raises:
        EngineError: it has no text, or one with half of a character.
        ValueError: its content is something else.
    """
    if isinstance(said, list):
        given = [part.get("text") for part in said if isinstance(part, Mapping) and part.get("type", "text") == "text"]
        texts = [text for text in given if isinstance(text, str)]
        if len(texts) < len(given):
            raise ValueError(f"a part of the content is no text: {str(said)[:200]!r}")
        said = "".join(texts) if texts else None
    said = said or message.get("refusal") or said
    if message.get("tool_calls") and not said:
        raise EngineError("the server calls a tool (`tool_calls`) instead of answering", kind="empty")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if said is None or (not said and (thought or reason in _CUT)):
        spent = "all of `max_tokens` went into its reasoning" if thought and reason in _CUT else f"it ended by {reason!r}"
        raise EngineError(
            f"the server's answer has no text: {spent}", "raise `max_tokens`, or let it reason less", kind="empty"
        )
    if not isinstance(said, str):
        raise ValueError(f"the content is no text: {str(said)[:200]!r}")
    try:
        said.encode()
    except UnicodeEncodeError as error:
        half = ascii(said[error.start])
        raise EngineError(f"the server's answer has {half}, half of a character", kind="refused", retry=True) from error
    return said


def _apart(request: Request, said: str, message: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return a turn's answer and the reasoning before it: the server's own field, or what stands in tags at the text's head.

    Raises:
        EngineError: the reasoning doesn't end, so there is no answer.
    """
    given = message.get("reasoning_content") or message.get("reasoning")
    words, thought = (said, None) if isinstance(request.prompt, str) or request.prefill else thought_apart(said)
    if thought is None:
        return said, given if isinstance(given, str) else None
    if not words:
        raise unanswered("the server's answer")
    return words, thought


def _trimmed(request: Request, text: str, reason: Any) -> tuple[str, Literal["stop", "length"]]:
    """Return the answer without a repeated prefill or a stop sequence that the server ignored, and why it ended."""
    if request.prefill.strip() and text.startswith(request.prefill):
        text = text[len(request.prefill) :]
    at = Stops.cut(text, request.sampling.stop)
    if at >= 0:
        return text[:at], "stop"
    return text, "length" if reason in _CUT else "stop"
