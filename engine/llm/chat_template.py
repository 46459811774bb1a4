"""What a chat template makes of conversations: which token ends a turn, and where in the text each assistant speaks.

Knows a template only by what it renders, whoever renders it. Never tokenises, reads no file and imports no LLM library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from caiflow.engine.errors import EngineError, WrongValue
from caiflow.engine.llm.base import Message

Spans = list[tuple[int, int]]
"""Parts of a text, as the places of their first character and of that behind their last one."""

PROBE: tuple[Message, ...] = ({"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Quite."})
_FURTHER: tuple[Message, ...] = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."})
_CALL = {"id": "callnr001", "type": "function", "function": {"name": "find_tea", "arguments": {"where": "in_the_pot"}}}
TOOL_TALK: Sequence[Any] = (
    PROBE[0],
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "name": "find_tea", "tool_call_id": "callnr001", "content": "No more than a cup."},
    PROBE[1],
)
_SYSTEM: Message = {"role": "system", "content": "Briefly."}


_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
"""What every template is given, beside the special tokens."""
_VARIABLE = re.compile(r"[A-Za-z]\w*", re.ASCII)


def template_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the variables that a template is to be given.

    Raises:
        WrongValue: a name is none that a template could read, or is what every template is given.
    """
    for name in variables:
        if not _VARIABLE.fullmatch(name) or name in _GIVEN or name.endswith("_token"):
            raise WrongValue(f"a template is given no variable `{name}`", "name one that it reads, such as enable_thinking")
    return variables


def with_variables(template: str, variables: Mapping[str, Any]) -> str:
    """Return a template in which these variables are set, for whoever renders it: it says the same wherever it is saved."""
    if not template or not variables:
        return template
    told = "".join(f"{{%- set {name} = {_literal(value)} %}}" for name, value in sorted(variables.items()))
    return f"{told}{{{{- '' }}}}{template}"  # without the text between them, a line break at the beginning would be lost


def _literal(value: Any) -> str:
    """Return a value of YAML as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


class Render(Protocol):
    """Lays a conversation out as text; with `prompt`, up to where the assistant is to speak next."""

    def __call__(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """Return the text.

        Raises:
            EngineError: kind `template`: the template refuses the conversation.
        """


def end_of_turn(render: Render, tokens: Iterable[str], eos: str | None) -> str | None:
    """Return the one of `tokens` with which the template ends an assistant's turn; `eos` where it has none of its own.

    White space ends none, though some tokenizers have added tokens of it: it stands within answers too.
    """
    try:
        said = render(PROBE, prompt=False)
    except EngineError:
        return eos
    closing = said[said.rfind(PROBE[-1]["content"]) :]
    found = [(closing.find(token), -len(token), token) for token in tokens if token.strip() and token in closing]
    return min(found)[2] if found else eos


def frame(render: Render, end: str | None) -> tuple[str, str]:
    """Return what the template writes before a reply's words, beyond where a prompt ends, and between them and `end`.

    A model that was trained under it writes both itself; neither is part of what it says.
    """
    try:
        head, whole = render(PROBE[:1], prompt=True), render(PROBE, prompt=False)
    except EngineError:
        return "", ""
    opening, said, closing = whole[len(head) :].partition(PROBE[1]["content"])
    if not (whole.startswith(head) and said):
        return "", ""
    return opening, closing[: closing.find(end)] if end and end in closing else ""


def spans(render: Render, messages: Sequence[Message], end: str | None, *, last: bool = False) -> tuple[str, Spans]:
    """Return a conversation's text, and where in it the assistant's turns are, or only the last one, up to `end`.

    Raises:
        EngineError: the template refuses the conversation, or rewrites earlier turns when later ones follow.
    """
    whole = render(messages, prompt=False)
    found: Spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or (last and index < len(messages) - 1):
            continue
        head = render(messages[:index], prompt=True) if index else _opening(render, messages[0])
        body = render(messages[: index + 1], prompt=False)
        closed = _end(body, len(head), message["content"], end)
        if body.startswith(head) and whole.startswith(body[:closed]):
            found.append((len(head), closed))
        elif last and not message.get("tool_calls"):  # the prompt as serving has it, and what the model is to say then
            text = head + _reply(render, messages, end)
            return text, [(len(head), len(text))]
        else:
            raise EngineError(
                "the chat template rewrites earlier turns, so the assistant's words can't be told apart",
                "use another, or learn the last reply alone (`loss_on: completion` in sft)",
                kind="template",
            )
    return whole, found


def rewrites_turns(render: Render, end: str | None, *, system: bool) -> bool:
    """Return whether the template rewrites what an assistant said once the conversation goes on, with a system turn or not."""
    try:
        spans(render, (*([_SYSTEM] if system else []), *PROBE, *_FURTHER), end)
    except EngineError as error:
        return "rewrites" in error.message
    return False


def refuses_system(render: Render) -> bool:
    """Return whether the template takes a conversation, but not under a system turn."""
    try:
        render(PROBE[:1], prompt=True)
    except EngineError:
        return False
    try:
        render((_SYSTEM, *PROBE[:1]), prompt=True)
    except EngineError:
        return True
    return False


def takes_tools(render: Render) -> bool:
    """Return whether the template says which tool is called, with what, and what it gives back."""
    try:
        said = render(TOOL_TALK, prompt=False)
    except EngineError:
        return False
    return all(word in said for word in ("find_tea", "in_the_pot", "No more than a cup."))


def _opening(render: Render, message: Message) -> str:
    """Return what stands before the words of an assistant that speaks first."""
    body = render([message], prompt=False)
    return body[: body.index(message["content"])] if message["content"] in body else ""


def _reply(render: Render, messages: Sequence[Message], end: str | None) -> str:
    """Return the last reply as it stands after its question alone, where that tells it from the prompt; else its bare words."""
    question = messages[-2:-1]
    try:
        head, body = render(question, prompt=True), render([*question, messages[-1]], prompt=False)
    except EngineError:
        return messages[-1]["content"]
    said = messages[-1]["content"]
    return body[len(head) : _end(body, len(head), said, end)] if body.startswith(head) else said


def _end(body: str, start: int, said: str, token: str | None) -> int:
    """Return where the assistant's turn ends: behind the end-of-turn token that follows its words."""
    words = body.rfind(said.strip(), start) if said.strip() else -1
    found = body.find(token, words + len(said.strip()) if words >= 0 else start) if token else -1
    return found + len(token) if token and found >= 0 else len(body)
