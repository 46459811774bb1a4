"""Turns: reading them from transcripts and message lists, and cutting a dialogue into a prompt and its response.

Never reads files and knows no format's field names.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.base import Message

Turns = Literal["all", "first"]

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "chatbot", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""What data sets call the three roles, lower-cased, and what caiflow calls them."""

_OURS = ("user", "assistant", "system")
_PLAIN = frozenset(("role", "content"))
CALLS = ("function_call", "tool_call")
"""Roles of turns that call a tool."""
RESULTS = ("tool", "function", "function_response", "observation", "tool_response", "ipython")
"""Roles of turns that say what a tool gave back."""
_NO_TOOLS = "tool calls are read in whole conversations alone: leave such rows out, or set `on_bad_row: quarantine`"

_FIRST = re.compile(r"\s*(Human|Assistant|System):")
TURN = re.compile(r"\n\n\s*(Human|Assistant):")
"""Where a further turn begins; no system turn, since there it is what somebody says. Its literal head is searched fast."""
_NEXT = ("Human:", "Assistant:")
"""How a piece between empty lines begins that is a turn."""
_HUMAN = re.compile(r"\n\n\s*Human:")
_ASSISTANT = re.compile(r"\n\n\s*Assistant:")
_REPLY = "\n\nAssistant:"
_PRINTED = re.compile(r"\s*\[\s*\{'")
_UNJOINED = re.compile(r"\}\s*\n\s*\{'")
"""Between two items of a list as numpy prints it; in Python's texts a line end is written `\\n`."""


def is_transcript(text: object) -> bool:
    """Return whether `text` begins as a transcript does: with `Human:` or `System:` as its first word."""
    return isinstance(text, str) and text.lstrip().startswith(("Human:", "System:"))


def is_whole_transcript(text: object) -> bool:
    """Return whether `text` is the transcript of a dialogue, whoever begins it: it has a turn of the other one's too."""
    if not isinstance(text, str):
        return False
    first = _FIRST.match(text)
    return first is not None and (_HUMAN if first[1] == "Assistant" else _ASSISTANT).search(unix_lines(text)) is not None


def are_transcripts(texts: Iterable[object]) -> bool:
    """Return whether most of these texts are transcripts: a turn's name alone, as in "Human: a noun?", makes none."""
    given = [text for text in texts if isinstance(text, str) and text.strip()]
    whole = [text for text in given if is_transcript(text) and (text.startswith("\n\n") or _ASSISTANT.search(unix_lines(text)))]
    return 2 * len(whole) > len(given)


def shorten(value: object) -> str:
    """Return a value as a message shows it: on one line, and not much of it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def unix_lines(text: str) -> str:
    r"""Return `text` with each `\r\n` and lone `\r` as `\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def parse_transcript(text: object) -> list[Message]:
    r"""Return the turns of `\n\nHuman: ...\n\nAssistant: ...`, stripped; neighbours of one role become one turn.

    Lines may end as on any system; in the turns they end in `\n`.

    Raises:
        ValueError: not a text, or one that doesn't begin with a turn.
    """
    if not isinstance(text, str):
        raise ValueError(f"a transcript must be text, got {_kind(text)}")
    text = unix_lines(text)
    first = _FIRST.match(text)
    if first is None:
        raise ValueError(f"a transcript must begin with 'Human:', got {shorten(text.strip())}")
    turns: list[Message] = []
    opening, *parts = text[first.end() :].split("\n\n")
    role, said = ROLES[first[1].lower()], [opening]
    for part in parts:
        if (begun := part.lstrip()).startswith(_NEXT):
            _append(turns, role, "\n\n".join(said).strip())
            marker, _, opening = begun.partition(":")
            role, said = ROLES[marker.lower()], [opening]
        else:
            said.append(part)
    _append(turns, role, "\n\n".join(said).strip())
    return turns


def parse_transcripts(chosen: object, rejected: object) -> tuple[list[Message], list[Message]]:
    """Return the turns of two transcripts of one dialogue with different ends.

    A transcript ends with the assistant's reply: a human turn that nobody answers is something this reply says.

    Raises:
        ValueError: as `parse_transcript` does.
    """
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return parse_transcript(chosen), parse_transcript(rejected)
    texts = unix_lines(chosen), unix_lines(rejected)
    ends = [text.rfind(_REPLY) for text in texts]
    asks_last = any(text.rfind("\n\nHuman:") > end for text, end in zip(texts, ends, strict=True))
    if not asks_last:
        return _of_one_beginning(texts, ends) or (parse_transcript(chosen), parse_transcript(rejected))
    last = _last_shared(*texts)
    if last is None or any(_ASSISTANT.search(text, last.end()) for text in texts):
        return parse_transcript(chosen), parse_transcript(rejected)
    shared = parse_transcript(texts[0][: last.start()])
    better, worse = (Message(role="assistant", content=text[last.end() :].strip()) for text in texts)
    return [*shared, better], [*shared, worse]


def _of_one_beginning(texts: Sequence[str], ends: Sequence[int]) -> tuple[list[Message], list[Message]] | None:
    """Return the turns of two transcripts that part in their last replies, which begin at `ends`; None where they don't."""
    beginning, *other = (text[: max(end, 0)] for text, end in zip(texts, ends, strict=True))
    replies = [text[end + len(_REPLY) :] for text, end in zip(texts, ends, strict=True)]
    if other != [beginning] or not _FIRST.match(beginning) or any(map(goes_on, replies)):
        return None
    better = parse_transcript(beginning)
    worse = better.copy()
    _append(better, "assistant", replies[0].strip())
    _append(worse, "assistant", replies[1].strip())
    return better, worse


def goes_on(reply: str) -> bool:
    """Return whether a further turn begins within what follows a turn's name."""
    return "\n\n" in reply and TURN.search(reply) is not None


def decode(value: Any) -> Any:
    """Return a text as it is, unless the whole of it is a message list, as JSON or as Python prints it: then that list.

    Raises:
        ValueError: a message has half of a character.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        items = _listed(value)
    except ValueError:
        return value
    return _whole(value, items) if isinstance(items, list) and any(map(_role, items)) else value


def decode_answers(*values: Any) -> Sequence[Any]:
    """Return texts as they are, unless each is the JSON of a message list that ends with the assistant: then those lists."""
    if not all(isinstance(value, str) and value.lstrip().startswith("[") for value in values):
        return values
    found = [decode(value) for value in values]
    whole = all(isinstance(one, list) and _role(one[-1]) == "assistant" for one in found)
    return found if whole else values


def parse_messages(value: object) -> list[Message]:
    """Return a message list in caiflow's form from `{role, content}` or `{from, value}` items, or from the text of these.

    Raises:
        ValueError: not a list, empty, an unknown role, or a content that isn't text.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _whole(value, _listed(value))
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"messages must be a list, got {_kind(value)}")
    if not value:
        raise ValueError("messages must not be empty")
    return [parse_message(item) for item in value]


def parse_prompt(value: object) -> list[Message]:
    """Return a prompt from a plain text (one user turn, kept as it is) or messages; it ends with a user turn.

    Raises:
        ValueError: empty, of another type, or without a user turn.
    """
    return cut(parse_dialogue(value), "all")[0]


def parse_dialogue(value: object) -> list[Message]:
    """Return the same with what the assistant says after the last user turn.

    Raises:
        ValueError: empty or of another type.
    """
    value = decode(value)
    if not isinstance(value, str):
        return parse_messages(value)
    if not value.strip():
        raise ValueError("the prompt must not be empty")
    return [Message(role="user", content=value)]


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
    """Return an answer given as text (kept as it is), or as a message list whose last turn is the assistant's.

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


def _listed(text: str) -> Any:
    """Return the list that a text is: as JSON, or as Python and numpy print it, which pandas puts into cells of a csv.

    Raises:
        ValueError: it is neither.
    """
    try:
        return ast.literal_eval(_UNJOINED.sub("}, {'", text.strip())) if _PRINTED.match(text) else json.loads(text)
    except (SyntaxError, MemoryError) as error:
        raise ValueError("neither JSON nor a list as Python prints it") from error
    except RecursionError as error:
        raise ValueError("a list nested too deep to be messages") from error


def _whole(text: str, value: Any) -> Any:
    """Return what a text was, once it is known to have no half of a character."""
    half = half_character(json.dumps(value, ensure_ascii=False)) if "\\" in text else None
    if half is not None:
        raise ValueError(f"a message has {half}, which is half of a character")
    return value


def _append(turns: list[Message], role: str, content: str) -> None:
    if turns and turns[-1]["role"] == role:
        content = f"{turns.pop()['content']}\n\n{content}".strip()
    turns.append({"role": role, "content": content})


def is_turns(value: object) -> bool:
    """Return whether `value` has the form of a message list, whatever the roles are and what is said."""
    try:
        value = decode(value)
    except ValueError:
        return True  # a list of messages, with half of a character in one
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(item, Mapping) and isinstance(item.get("role") or item.get("from"), str) for item in value)


def is_human(turn: object) -> bool:
    """Return whether what has the form of a message is the user's."""
    return _role(turn) == "user"


def _last_shared(left: str, right: str) -> re.Match[str] | None:
    """Return the last "Assistant:" up to which two transcripts are the same."""
    differ = next(
        (at for at, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), min(len(left), len(right))
    )
    *_, last = (None, *_ASSISTANT.finditer(left, 0, differ))
    return last


def _role(item: object) -> str | None:
    """Return caiflow's word for the role of what has the form of a message."""
    if not isinstance(item, Mapping) or not ("content" in item or "value" in item):
        return None
    role = item.get("role") or item.get("from")
    return ROLES.get(role.lower()) if isinstance(role, str) else None


def parse_message(item: object) -> Message:
    """Return one message in caiflow's form.

    Raises:
        ValueError: as `parse_messages` does.
    """
    if not isinstance(item, Mapping):
        raise ValueError(f"a message must be a mapping, got {_kind(item)}")
    if item.keys() == _PLAIN and isinstance(item["content"], str) and item["role"] in _OURS:
        return Message(role=item["role"], content=item["content"])
    role = item.get("role") or item.get("from")
    if isinstance(role, str) and role.lower() in (*CALLS, *RESULTS):
        raise WrongValue(f"a message is a tool's turn (role {role!r})", _NO_TOOLS)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise WrongValue(f"unknown role {role!r}", f"expected one of {', '.join(ROLES)}")
    for name in ("tool_calls", "function_call"):
        if item.get(name):
            raise WrongValue(f"a message calls a tool (`{name}`)", _NO_TOOLS)
    ours = ROLES[role.lower()]
    if ours == "assistant" and (mark := _unlearnt(item)):
        raise WrongValue(f"a message has {mark}", "each reply of a conversation is learnt, so cut it before, or drop the field")
    return Message(role=ours, content=content_text(item.get("content", item.get("value", item.get("parts")))))


def _unlearnt(item: Mapping[str, Any]) -> str:
    """Return the mark of a turn that isn't to be learnt; empty where it has none."""
    if item.get("weight") == 0:
        return "`weight: 0`"
    return next((f"`{name}: false`" for name in ("train", "training", "loss") if item.get(name) is False), "")


def content_text(value: Any) -> str:
    """Return the text of a message's content, which may be in parts.

    Raises:
        ValueError: it isn't text, or a part of it is none.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, (str, Mapping)) for part in value):
        return "".join(map(_part, value))
    raise ValueError(f"a message's content must be text, got {_kind(value)}")


def _part(part: str | Mapping[str, Any]) -> str:
    """Return the text of one part of a message's content.

    Raises:
        ValueError: it is an image or the like.
    """
    text = part if isinstance(part, str) else part.get("text", part.get("value"))
    kind = "text" if isinstance(part, str) else part.get("type", "text")
    if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
        raise WrongValue(f"a message has a part that isn't text, of type {kind!r}", "only text is read")
    return text


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
