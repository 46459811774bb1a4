"""Conversations in which tools are called: their turns as chat templates take them, whatever shape the source has them in.

A turn's role and text are a message as any other; what a template needs beside (the calls, their ids, the tools that there
were) is kept as JSON in a column of its own, `tool_use`. Never reads a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.base import Message
from caiflow.engine.rows.tool_use import TOOL_USE
from caiflow.operators.formats.dialogue import CALLS, RESULTS, ROLES, decode, parse_message, shorten
from caiflow.operators.formats.named.fields import Fields, Record

_KEPT = ("tool_call_id", "name")


def uses_tools(value: Any) -> bool:
    """Return whether a message list has a call of a tool or what one gave back."""
    items = decode(value)
    return isinstance(items, Sequence) and not isinstance(items, str) and any(map(_is_tools, items))


def with_tools(turns: Sequence[Any], record: Record) -> Fields:
    """Return the columns of a conversation in which tools are called; the prompt is all that its last reply follows.

    Raises:
        ValueError: a turn isn't what it seems, or nobody asks for anything.
    """
    read = [_turn(item) for item in turns]
    messages = [message for message, _ in read]
    if not any(turn["role"] == "user" for turn in messages):
        raise ValueError("no human turn")
    answered = messages[-1]["role"] == "assistant"
    use = {"tools": _tools(record.get("tools")), "turns": [beside for _, beside in read]}
    return {
        "prompt": messages[: len(messages) - answered],
        "response": messages[-1]["content"] or None if answered else None,
        "messages": messages,
        TOOL_USE: json.dumps(use, ensure_ascii=False),
    }


def _role(item: Any) -> str:
    role = (item.get("role") or item.get("from")) if isinstance(item, Mapping) else None
    return role.lower() if isinstance(role, str) else ""


def _is_tools(item: Any) -> bool:
    return _role(item) in (*CALLS, *RESULTS) or (isinstance(item, Mapping) and bool(_calls_in(item)))


def _calls_in(item: Mapping[str, Any]) -> Any:
    """Return the calls that an assistant's message makes; a single one under its former name is a list, too."""
    return item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else None)


def _turn(item: Any) -> tuple[Message, Mapping[str, Any]]:
    """Return a turn's message, and what else a chat template needs of it."""
    role, given = _role(item), item if isinstance(item, Mapping) else {}
    text = given.get("content", given.get("value"))
    if role in CALLS:
        return Message(role="assistant", content=""), {"tool_calls": _called(_decoded(text))}
    if role in RESULTS:
        beside = {name: given[name] for name in _KEPT if isinstance(given.get(name), str)}
        plain = text if isinstance(text, (str, list)) else json.dumps(text, ensure_ascii=False)
        return Message(role="tool", content=parse_message({"role": "user", "content": plain})["content"]), beside
    calls = _calls_in(given) if ROLES.get(role) == "assistant" else None
    if not calls:
        return parse_message(item), {}
    rest = {name: value for name, value in given.items() if name not in ("tool_calls", "function_call", "content", "value")}
    return parse_message({**rest, "content": text or ""}), {"tool_calls": _called(calls)}


def _called(calls: Any) -> list[dict[str, Any]]:
    """Return calls in the form that chat templates take: `{type, id, function: {name, arguments}}`, arguments decoded.

    Raises:
        ValueError: one names no function.
    """
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, str):
            function = {"name": function, "arguments": call.get("arguments")}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise WrongValue(f"a message calls a tool without its `name`, got {shorten(call)}", "mend it, or leave it out")
        given = _decoded(function.get("arguments", function.get("parameters")))
        one = {"type": "function", "function": {"name": function["name"], "arguments": {} if given is None else given}}
        found.append({"id": call["id"], **one} if isinstance(call.get("id"), str) else one)
    return found


def _decoded(value: Any) -> Any:
    """Return a text's JSON object or list, and anything else as it is."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, (dict, list)) else value


def _tools(value: Any) -> Any:
    """Return the tools that a record has, None where it has none."""
    return _decoded(value) or None
