"""Turns: reading them from transcripts and message lists, and cutting a dialogue into a prompt and its response.

Never reads files and knows no format's field names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.base import Message

Turns = Literal["all", "first"]

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""What data sets call the three roles, lower-cased, and what caiflow calls them."""

_MARKER = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant|System):")


def is_transcript(text: object) -> bool:
    """Return whether `text` begins as a transcript does: with `Human:` or `System:` as its first word."""
    return isinstance(text, str) and text.lstrip().startswith(("Human:", "System:"))


def shorten(value: object) -> str:
    """Return a value as a message shows it: on one line, and not much of it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def unix_lines(text: str) -> str:
    r"""Return `text` with each `\r\n` and lone `\r` as `\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_transcript(text: object) -> list[Message]:
    r"""Return the turns of `\n\nHuman: ...\n\nAssistant: ...`, stripped; neighbours of one role become one turn.

    Lines may end as on any system; in the turns they end in `\n`.

    Raises:
        ValueError: not a text, or one that doesn't begin with a turn.
    """
    if not isinstance(text, str):
        raise ValueError(f"a transcript must be text, got {_kind(text)}")
    lead, *parts = _MARKER.split(unix_lines(text))
    if lead.strip() or not parts:
        raise ValueError(f"a transcript must begin with 'Human:', got {shorten(text.strip())}")
    turns: list[Message] = []
    for marker, content in zip(parts[::2], parts[1::2], strict=True):
        _append(turns, ROLES[marker.lower()], content.strip())
    return turns


def parse_messages(value: object) -> list[Message]:
    """Return a message list in caiflow's form from `{role, content}` or `{from, value}` items, or from their JSON text.

    Raises:
        ValueError: not a list, empty, an unknown role, or a content that isn't text.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _from_json(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"messages must be a list, got {_kind(value)}")
    if not value:
        raise ValueError("messages must not be empty")
    return [_message(item) for item in value]


def is_message_list(value: object) -> bool:
    """Return whether `value` can be read by `parse_messages`."""
    try:
        parse_messages(value)
    except ValueError:
        return False
    return True


def parse_prompt(value: object) -> list[Message]:
    """Return a prompt from a plain text (one user turn, kept as it is), a transcript or messages; it ends with a user turn.

    Raises:
        ValueError: empty, of another type, or without a user turn.
    """
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        if not value.strip():
            raise ValueError("the prompt must not be empty")
        turns = parse_transcript(value) if is_transcript(value) else [Message(role="user", content=value)]
    else:
        turns = parse_messages(value)
    return cut(turns, "all")[0]


def cut(turns: Sequence[Message], which: Turns) -> tuple[list[Message], str | None]:
    """Return (prompt, response): the turns up to the last user turn (or the first), and the assistant's answer to it, if any.

    Raises:
        ValueError: there is no user turn.
    """
    users = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
    if not users:
        raise ValueError("no human turn")
    end = users[0 if which == "first" else -1] + 1
    answered = end < len(turns) and turns[end]["role"] == "assistant"
    return list(turns[:end]), turns[end]["content"] if answered else None


def answer_text(value: object) -> str:
    """Return an answer given as text, or as a message list whose last turn is the assistant's.

    Raises:
        ValueError: neither of these.
    """
    if isinstance(value, str):
        return value
    last = parse_messages(value)[-1]
    if last["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, got role {last['role']!r}")
    return last["content"]


def half_character(text: str) -> str | None:
    r"""Return the first half of a surrogate pair that stands alone, as `\ud83d`, None where there is none.

    JSON may have some; no file can, since UTF-8 has no form for them.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])[1:-1]
    return None


def _from_json(text: str) -> Any:
    value = json.loads(text)
    half = half_character(json.dumps(value, ensure_ascii=False)) if "\\" in text else None
    if half is not None:
        raise ValueError(f"a message has {half}, which is half of a character")
    return value


def _append(turns: list[Message], role: str, content: str) -> None:
    if turns and turns[-1]["role"] == role:
        content = f"{turns.pop()['content']}\n\n{content}".strip()
    turns.append(Message(role=role, content=content))


def _message(item: object) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"a message must be a mapping, got {_kind(item)}")
    role = item.get("role") or item.get("from")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise WrongValue(f"unknown role {role!r}", f"expected one of {', '.join(ROLES)}")
    return Message(role=ROLES[role.lower()], content=_content(item.get("content", item.get("value"))))


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    raise ValueError(f"a message's content must be text, got {_kind(value)}")


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
