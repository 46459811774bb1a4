"""The named formats: which records each one recognises, and how it turns a record into caiflow's columns.

Owns every format's field names. Never reads files; a bad record is a ValueError whose text says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.base import Message
from caiflow.operators.formats.dialogue import (
    Turns,
    answer_text,
    cut,
    is_message_list,
    is_transcript,
    parse_messages,
    parse_prompt,
    parse_transcript,
    shorten,
    unix_lines,
)

Record = Mapping[str, Any]
Fields = dict[str, Any]


class Format(NamedTuple):
    """One format: `fits` recognises a record, `parse` gives its columns, `takes` are the fields that this uses up.

    `group` records in a row make one row (2 where chosen and rejected alternate).
    """

    name: str
    describe: str
    takes: frozenset[str]
    fits: Callable[[Record], bool]
    parse: Callable[[Record, Turns], Fields]
    group: int = 1


def _dialogue(turns: Sequence[Message], which: Turns) -> Fields:
    prompt, response = cut(turns, which)
    given = list(turns) if which == "all" else [*prompt, *turns[len(prompt) : len(prompt) + (response is not None)]]
    return {"prompt": prompt, "response": response, "messages": given}


def _messages(record: Record, which: Turns) -> Fields:
    return _dialogue(parse_messages(_present(record, "messages")), which)


def _sharegpt(record: Record, which: Turns) -> Fields:
    turns = parse_messages(_present(record, "conversations", "conversation", "items"))
    system = record.get("system")
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
        turns.insert(0, Message(role="system", content=system))
    return _dialogue(turns, which)


def _prompt(record: Record, which: Turns) -> Fields:
    prompt = parse_prompt(_said(record, "prompt"))
    fields: Fields = {"prompt": cut(prompt, which)[0]}
    if record.get("completion") is not None:
        fields["response"] = answer_text(_said(record, "completion"))
    return fields


def _hh(record: Record, which: Turns) -> Fields:
    chosen, rejected = parse_transcript(_present(record, "chosen")), parse_transcript(_present(record, "rejected"))
    return _pair(chosen, rejected, which)


def _pair(chosen: Sequence[Message], rejected: Sequence[Message], which: Turns) -> Fields:
    """Cut two dialogues; they are a pair only where both answer the same prompt, each in its own words."""
    prompt, better = cut(chosen, which)
    other, worse = cut(rejected, which)
    same = prompt == other and better is not None and worse is not None and better != worse
    return {
        "prompt": prompt,
        "response": better,
        "chosen": better if same else None,
        "rejected": worse if same else None,
        "p_chosen": 1.0 if same else None,
    }


def _red_team(record: Record, which: Turns) -> Fields:
    prompt, response = cut(parse_transcript(_present(record, "transcript")), which)
    return {"prompt": prompt, "response": response}


def _preference(record: Record, which: Turns) -> Fields:
    chosen, rejected = _said(record, "chosen"), _said(record, "rejected")
    plain = isinstance(chosen, str) and not chosen.lstrip().startswith("[")
    if record.get("prompt") is None and not plain:
        return _pair(parse_messages(chosen), parse_messages(rejected), which)
    prompt = cut(parse_prompt(_said(record, "prompt")), which)[0]
    if not plain and prompt[0]["role"] != "system":  # which only the conversations may have
        prompt = [*(turn for turn in parse_messages(chosen)[:1] if turn["role"] == "system"), *prompt]
    share = record.get("p_chosen")
    return {
        "prompt": prompt,
        "chosen": answer_text(chosen),
        "rejected": answer_text(rejected),
        "p_chosen": 1.0 if share is None else _share(share),
    }


def _cai_conversation(record: Record, which: Turns) -> Fields:
    fields: Fields = {"prompt": parse_prompt(_said(record, "init_prompt"))}
    names = {"response": "init_response", "critique": "critic_response", "revision": "revision_response"}
    fields |= {ours: _text(record, theirs) for ours, theirs in names.items()}
    if record.get("messages"):
        fields["messages"] = parse_messages(record["messages"])
    if record.get("chosen") and record.get("rejected"):
        answers = {name: answer_text(_said(record, name)) for name in ("chosen", "rejected")}
        fields |= {**answers, "p_chosen": 1.0}
    return fields


_NEMO_TURN = re.compile(r"<extra_id_[01]>(System|User|Assistant)\n")


def _nemo_turns(text: object) -> list[Message]:
    if not isinstance(text, str) or "<extra_id_" not in text:
        return parse_transcript(text)
    _, *parts = _NEMO_TURN.split(re.sub(r"<extra_id_2>[^\n]*\n", "", unix_lines(text)))
    turns = [Message(role=role.lower(), content=said.strip()) for role, said in zip(parts[::2], parts[1::2], strict=True)]
    return [turn for turn in turns if turn["role"] != "system" or turn["content"]]


def _nemo_preference(record: Record, which: Turns) -> Fields:
    return _pair(_nemo_turns(_present(record, "chosen")), _nemo_turns(_present(record, "rejected")), which)


def _table(record: Record, which: Turns) -> Fields:
    return {}


def _has(*names: str) -> Callable[[Record], bool]:
    return lambda record: all(record.get(name) is not None for name in names)


def _present(record: Record, *names: str) -> Any:
    for name in names:
        if record.get(name) is not None:
            return record[name]
    for name in names:
        if name in record:
            raise ValueError(f"`{name}` is null")
    raise WrongValue(f"no `{names[0]}`", f"it has {', '.join(f'`{name}`' for name in record) or 'nothing'}")


def _said(record: Record, name: str) -> Any:
    """Return what a field that has to be there says: a text or a list, whose items are yet to be checked."""
    value = _present(record, name)
    if not isinstance(value, (str, Sequence)):
        raise ValueError(f"`{name}` must be a text or a list of messages, got {shorten(value)}")
    return value


def _text(record: Record, name: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{name}` must be text, got {type(value).__name__}")
    return value


def _share(value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0  # no number, so none in range
    if not 0 <= share <= 1:
        raise ValueError(f"`p_chosen` must be a number from 0 to 1, got {shorten(value)}")
    return share


def _sharegpt_fits(record: Record) -> bool:
    return any(is_message_list(record.get(name)) for name in ("conversations", "conversation", "items"))


def _format(
    name: str,
    describe: str,
    takes: str,
    fits: Callable[[Record], bool],
    parse: Callable[[Record, Turns], Fields],
    group: int = 1,
) -> Format:
    return Format(name, describe, frozenset(takes.split()), fits, parse, group)


FORMATS: Mapping[str, Format] = {
    entry.name: entry
    for entry in (
        _format(
            "cai_conversation",
            "init_prompt, init_response, critic_response, revision_response, chosen, rejected",
            "init_prompt init_response critic_response revision_response prompt messages chosen rejected",
            _has("init_prompt", "revision_response"),
            _cai_conversation,
        ),
        _format("red_team", "transcript and its ratings", "transcript", _has("transcript"), _red_team),
        _format(
            "hh",
            "chosen and rejected transcripts of Human and Assistant turns",
            "chosen rejected",
            lambda record: is_transcript(record.get("chosen")) and is_transcript(record.get("rejected")),
            _hh,
        ),
        _format(
            "preference",
            "prompt, chosen, rejected as text or messages",
            "prompt chosen rejected p_chosen",
            _has("chosen", "rejected"),
            _preference,
        ),
        _format(
            "ultrachat",
            "prompt, prompt_id, messages",
            "prompt messages",
            lambda record: _has("prompt_id", "messages")(record) and is_message_list(record["messages"]),
            _messages,
        ),
        _format(
            "messages",
            "messages: [{role, content}]",
            "messages",
            lambda record: is_message_list(record.get("messages")),
            _messages,
        ),
        _format(
            "nemo",
            "system, conversations: [{from, value, label}], mask",
            "conversations system",
            lambda record: "mask" in record and is_message_list(record.get("conversations")),
            _sharegpt,
        ),
        _format(
            "sharegpt",
            "conversations: [{from, value}] or [{role, content}]",
            "conversations conversation items system",
            _sharegpt_fits,
            _sharegpt,
        ),
        _format(
            "prompt",
            "prompt as text, transcript or messages; completion where there is one",
            "prompt completion",
            _has("prompt"),
            _prompt,
        ),
        _format(
            "nemo_preference",
            "alternating lines of {text}: chosen, rejected",
            "chosen rejected",
            lambda record: False,
            _nemo_preference,
            group=2,
        ),
        _format("table", "any columns, kept as they are", "", lambda record: True, _table),
    )
}
"""Every format by name, the most telling first: detection takes the first that fits."""


def detect(records: Sequence[Record]) -> Format:
    """Return the format that fits the most of `records`; among equals the more telling one. Without records: `table`.

    Lists under a name that conversations have are taken for some, even where they are broken.
    """

    def fitting(entry: Format) -> int:
        return sum(map(entry.fits, records))

    telling = [entry for entry in FORMATS.values() if entry.name != "table"]
    best = max(telling, key=fitting)
    if fitting(best):
        return best
    for name, column in (("messages", "messages"), ("sharegpt", "conversations")):
        if records and all(isinstance(record.get(column), list) for record in records):
            return FORMATS[name]  # which will say what is wrong with them
    return FORMATS["table"]
