"""The column `tool_use`: what a chat template needs of conversations in which tools are called, beside roles and texts.

JSON: `{"tools": [...] or null, "turns": [{}, {"tool_calls": [...]}, {"tool_call_id": ...}, ...]}`, an object for each turn of
`messages`. Only training on whole conversations can use it: whoever asks a model about such a row refuses it here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from caiflow.engine.errors import Finding, WrongValue
from caiflow.engine.llm.base import Message
from caiflow.engine.rows.columns import Columns

TOOL_USE = "tool_use"
_ROLES = ("system", "user", "assistant")
LEAVE_OUT = 'leave such rows out: `filter` with `drop: [{where: "tool_use != None"}]`'


def refuse_tools(turns: Sequence[Mapping[str, Any]]) -> None:
    """Raise for a conversation in which tools are called.

    Raises:
        ValueError: it has a tool's turn.
    """
    if any(turn["role"] not in _ROLES for turn in turns):
        raise WrongValue("the conversation has tool turns, which only `sft` takes", LEAVE_OUT)


def refused_tools(
    inputs: Mapping[str, Columns], steps: Collection[str], column: str, field: str = "input"
) -> Iterator[Finding]:
    """Yield the inputs among `steps` in which conversations of a column have tool turns, with their number."""
    for step in steps:
        turns = inputs[step].turns.get(column)
        if turns and turns.tools:
            have = f"{turns.tools} of {turns.rows} rows of `{step}` have"
            yield Finding((field,), f"tool calls and tool turns, which {have}, are for `sft` alone", LEAVE_OUT)


def with_tool_use(turns: Sequence[Message], row: Mapping[str, Any]) -> list[Any]:
    """Return turns with what the row's `tool_use` has beside each; those after its last are plain.

    Raises:
        ValueError: they have tool turns and the row doesn't say what was called.
    """
    if row.get(TOOL_USE) is None:
        refuse_tools(turns)
        return list(turns)
    beside = json.loads(row[TOOL_USE])["turns"]
    return [{**turn, **(beside[place] if place < len(beside) else {})} for place, turn in enumerate(turns)]


def tools_of(row: Mapping[str, Any]) -> Any:
    """Return the tools that a row's conversation has, None where it has none."""
    return json.loads(row[TOOL_USE])["tools"] if row.get(TOOL_USE) is not None else None
