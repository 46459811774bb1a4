"""Formats of one conversation or question and its answer. Never reads files; a bad record is a ValueError that says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.base import Message
from caiflow.operators.formats.dialogue import (
    Turns,
    answer_text,
    cut,
    decode,
    decode_answers,
    is_turns,
    parse_messages,
    parse_prompt,
    parse_transcript,
)
from caiflow.operators.formats.named.fields import Fields, Record, present, reply, said
from caiflow.operators.formats.named.tool_turns import uses_tools, with_tools

CONVERSATIONS = ("conversations", "conversation", "items")
CHATS = ("messages", *CONVERSATIONS)
SYSTEM = ("system", "system_prompt")


def dialogue(turns: Sequence[Message], which: Turns) -> Fields:
    """Return the columns of a whole conversation."""
    prompt, response = cut(turns, which)
    given = list(turns) if which == "all" else [*prompt, *turns[len(prompt) : len(prompt) + (response is not None)]]
    return {"prompt": prompt, "response": response, "messages": given}


def messages(record: Record, which: Turns) -> Fields:
    """Read `messages`, and the `completion` that answers them where it is apart."""
    given = present(record, "messages")
    if uses_tools(given):
        return _with_tools(given, record, which)
    turns = opened(parse_messages(given), record)
    if turns[-1]["role"] == "user" and record.get("completion"):
        turns = [*turns, Message(role="assistant", content=answer_text(reply(record, "completion")))]
    return dialogue(turns, which)


def sharegpt(record: Record, which: Turns) -> Fields:
    """Read a conversation under one of the names that it has."""
    given = present(record, *CONVERSATIONS)
    return _with_tools(given, record, which) if uses_tools(given) else dialogue(opened(parse_messages(given), record), which)


def _with_tools(given: Any, record: Record, which: Turns) -> Fields:
    """Return a conversation in which tools are called, whole.

    Raises:
        ValueError: it was to be cut, or begins with another system turn than the record has beside it.
    """
    if which == "first":
        raise WrongValue("a conversation with tool calls can't be cut at its first turn", "leave `turns` out")
    turns = decode(given)
    head = opened(parse_messages(turns[:1]), record) if not uses_tools(turns[:1]) else []
    return with_tools([*head, *turns[1:]] if head else turns, record)


def is_sharegpt(record: Record) -> bool:
    """Return whether a record has a conversation under one of these names."""
    return any(is_turns(record.get(name)) for name in CONVERSATIONS)


def opened(turns: list[Message], record: Record) -> list[Message]:
    """Return turns with the system turn that the record has beside them.

    Raises:
        ValueError: they begin with another one.
    """
    name, text = next(((name, record[name]) for name in SYSTEM if isinstance(record.get(name), str)), ("", ""))
    if not text.strip():
        return turns
    if turns[0]["role"] != "system":
        return [Message(role="system", content=text), *turns]
    if turns[0]["content"].strip() != text.strip():
        raise WrongValue(f"`{name}` and the first message are system turns, and differ", f"drop or rename `{name}`")
    return turns


def prompted(record: Record, which: Turns) -> Fields:
    """Read `prompt`, and `completion` where there is one; a completion that is labelled bad is no response."""
    prompt = opened(parse_prompt(with_input(said(record, "prompt"), record)), record)
    fields: Fields = {"prompt": cut(prompt, which)[0]}
    if record.get("completion") is not None:
        answer = answer_text(*decode_answers(reply(record, "completion")))
        fields |= {"response": None, "rejected": answer} if _is_bad(record.get("label")) else {"response": answer}
    return fields


def with_input(prompt: Any, record: Record) -> Any:
    """Return a text with what its `input` adds to it."""
    given = record.get("input")
    return f"{prompt}\n\n{given}" if isinstance(prompt, str) and isinstance(given, str) and given.strip() else prompt


def _is_bad(label: object) -> bool:
    """Return whether a completion's label says that it isn't to be learnt: false, also as a table writes it."""
    return label is False or (isinstance(label, str) and label.strip().lower() == "false")


def alpaca(record: Record, which: Turns) -> Fields:
    """Read `instruction`, `input` and `output`."""
    prompt, answer = present(record, "instruction"), present(record, "output")
    return prompted({**record, "prompt": prompt, "completion": answer, "label": None}, which)


def red_team(record: Record, which: Turns) -> Fields:
    """Read `transcript`."""
    prompt, response = cut(parse_transcript(present(record, "transcript")), which)
    return {"prompt": prompt, "response": response}
