"""Formats of one conversation or question and its answer. Never reads files; a bad record is a ValueError that says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.base import Message
from caiflow.operators.formats.dialogue import (
    ROLES,
    Turns,
    answer_text,
    content_text,
    cut,
    decode,
    decode_answers,
    is_turns,
    parse_dialogue,
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
    given = exchanges(given) or given
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
    return any(is_turns(record.get(name)) or exchanges(record.get(name)) for name in CONVERSATIONS)


def exchanges(value: object) -> list[Message]:
    """Return the turns of a list of questions with answers, `[{input, output}]` or `[[question, answer]]`; none of others."""
    items = value if isinstance(value, list) else []
    pairs = [(item.get("input"), item.get("output")) if isinstance(item, Mapping) else item for item in items]
    if not all(map(_is_exchange, pairs)):
        return []
    whose = ("user", "assistant")
    first = items[0].get("system") if items and isinstance(items[0], Mapping) else None
    head = [Message(role="system", content=first)] if isinstance(first, str) and first.strip() else []
    return head + [Message(role=role, content=text) for pair in pairs for role, text in zip(whose, pair, strict=True)]


def _is_exchange(pair: Any) -> bool:
    """Return whether this is a question and its answer, no role and what it says."""
    two = isinstance(pair, (list, tuple)) and [type(text) for text in pair] == [str, str]
    return two and pair[0].strip().lower() not in ROLES


def opened(turns: list[Message], record: Record) -> list[Message]:
    """Return turns with the system turn that the record has beside them.

    Raises:
        ValueError: they begin with another one, it has two, or one that isn't text.
    """
    found = {name: text for name in SYSTEM if (text := _system_text(record, name)).strip()}
    if not found:
        return turns
    name, text = next(iter(found.items()))
    if len({text.strip() for text in found.values()}) > 1:
        raise WrongValue(f"{' and '.join(f'`{name}`' for name in found)} are system turns, and differ", "drop or rename one")
    if turns[0]["role"] != "system":
        return [Message(role="system", content=text), *turns]
    if turns[0]["content"].strip() != text.strip():
        raise WrongValue(f"`{name}` and the first message are system turns, and differ", f"drop or rename `{name}`")
    return turns


def _system_text(record: Record, name: str) -> str:
    """Return the system text in a field, which may be a message or in parts; empty where there is none."""
    value = record.get(name)
    if isinstance(value, Mapping):
        value = value.get("content", value.get("parts", [value]))
    try:
        return content_text(value) if isinstance(value, (str, list)) else ""
    except ValueError as error:
        raise WrongValue(f"`{name}`: {error}", "make it a text, or rename it") from error


def prompted(record: Record, which: Turns) -> Fields:
    """Read `prompt`, and the `completion` that answers its last turn; a completion that is labelled bad is no response.

    Without a completion, what the assistant says in the prompt to its last turn is the response.
    """
    turns = opened(parse_dialogue(with_input(said(record, "prompt"), record)), record)
    prompt, response = cut(turns, which)
    fields: Fields = {"prompt": prompt}
    if len(prompt) < len(cut(turns, "all")[0]):
        return {**fields, "response": response}
    if record.get("completion") is None:
        return {**fields, "response": response} if response and response.strip() else fields
    answer = answer_text(*decode_answers(reply(record, "completion")))
    return {**fields, **({"response": None, "rejected": answer} if _is_bad(record.get("label")) else {"response": answer})}


def with_input(prompt: Any, record: Record) -> Any:
    """Return a text with what its `input` adds to it."""
    given = record.get("input")
    if not isinstance(prompt, str) or not isinstance(given, str) or given.strip() in ("", prompt.strip()):
        return prompt
    return f"{prompt}\n\n{given}"


def _is_bad(label: object) -> bool:
    """Return whether a completion's label says that it isn't to be learnt: false, also as a table writes it."""
    return label is False or (isinstance(label, str) and label.strip().lower() == "false")


def alpaca(record: Record, which: Turns) -> Fields:
    """Read `instruction`, `input` and `output`, after what `history` has of questions and answers."""
    prompt, answer = present(record, "instruction"), present(record, "output")
    earlier = exchanges(record.get("history"))
    if not earlier:
        return prompted({**record, "prompt": prompt, "completion": answer, "label": None}, which)
    last = [*parse_prompt(with_input(prompt, record)), Message(role="assistant", content=answer_text(answer))]
    asked, response = cut(opened([*earlier, *last], record), which)
    return {"prompt": asked, "response": response}


def red_team(record: Record, which: Turns) -> Fields:
    """Read `transcript`."""
    prompt, response = cut(parse_transcript(present(record, "transcript")), which)
    return {"prompt": prompt, "response": response}
