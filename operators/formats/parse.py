"""The named formats: which records each one recognises, and how it turns a record into caiflow's columns.

Owns every format's field names. Never reads files; a bad record is a ValueError whose text says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.base import Message
from caiflow.operators.formats.compared import preferred
from caiflow.operators.formats.dialogue import (
    Turns,
    answer_text,
    cut,
    decode_answers,
    is_transcript,
    is_turns,
    parse_messages,
    parse_prompt,
    parse_transcript,
    parse_transcripts,
    shorten,
    unix_lines,
)

_CONVERSATIONS = ("conversations", "conversation", "items")
_CHATS = ("messages", *_CONVERSATIONS)
_SYSTEM = ("system", "system_prompt")

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
    turns = _opened(parse_messages(_present(record, "messages")), record)
    if turns[-1]["role"] == "user" and record.get("completion"):
        turns = [*turns, Message(role="assistant", content=answer_text(_answer(record, "completion")))]
    return _dialogue(turns, which)


def _sharegpt(record: Record, which: Turns) -> Fields:
    return _dialogue(_opened(parse_messages(_present(record, *_CONVERSATIONS)), record), which)


def _opened(turns: list[Message], record: Record) -> list[Message]:
    """Return turns with the system turn that the record has beside them.

    Raises:
        ValueError: they begin with another one.
    """
    name, text = next(((name, record[name]) for name in _SYSTEM if isinstance(record.get(name), str)), ("", ""))
    if not text.strip():
        return turns
    if turns[0]["role"] != "system":
        return [Message(role="system", content=text), *turns]
    if turns[0]["content"].strip() != text.strip():
        raise WrongValue(f"`{name}` and the first message are system turns, and differ", f"drop or rename `{name}`")
    return turns


def _prompt(record: Record, which: Turns) -> Fields:
    prompt = _opened(parse_prompt(_with_input(_said(record, "prompt"), record)), record)
    fields: Fields = {"prompt": cut(prompt, which)[0]}
    if record.get("completion") is not None:
        answer = answer_text(*decode_answers(_answer(record, "completion")))
        fields |= {"response": None, "rejected": answer} if _is_bad(record.get("label")) else {"response": answer}
    return fields


def _with_input(prompt: Any, record: Record) -> Any:
    """Return a text with what its `input` adds to it."""
    given = record.get("input")
    return f"{prompt}\n\n{given}" if isinstance(prompt, str) and isinstance(given, str) and given.strip() else prompt


def _is_bad(label: object) -> bool:
    """Return whether a completion's label says that it isn't to be learnt: false, also as a table writes it."""
    return label is False or (isinstance(label, str) and label.strip().lower() == "false")


def _alpaca(record: Record, which: Turns) -> Fields:
    prompt, answer = _present(record, "instruction"), _present(record, "output")
    return _prompt({**record, "prompt": prompt, "completion": answer, "label": None}, which)


def _hh(record: Record, which: Turns) -> Fields:
    return _pair(*parse_transcripts(_present(record, "chosen"), _present(record, "rejected")), which)


def _pair(chosen: Sequence[Message], rejected: Sequence[Message], which: Turns, share: float = 1.0) -> Fields:
    """Cut two dialogues; they are a pair only where both answer the same prompt, each in its own words."""
    prompt, better = cut(chosen, which)
    other, worse = cut(rejected, which)
    same = prompt == other and better is not None and worse is not None and better != worse
    return {
        "prompt": prompt,
        "response": better,
        "chosen": better if same else None,
        "rejected": worse if same else None,
        "p_chosen": share if same else None,
    }


def _red_team(record: Record, which: Turns) -> Fields:
    prompt, response = cut(parse_transcript(_present(record, "transcript")), which)
    return {"prompt": prompt, "response": response}


def _preference(record: Record, which: Turns) -> Fields:
    answers = decode_answers(_answer(record, "chosen"), _answer(record, "rejected"))
    share = 1.0 if record.get("p_chosen") is None else _share(record["p_chosen"])
    given = next((name for name in ("prompt", *_CHATS) if record.get(name) is not None), "prompt")
    if given != "prompt" and all(isinstance(answer, list) and len(answer) > 1 for answer in answers):
        given = "prompt"  # the answers are whole conversations, and this one is yet another
    if record.get("prompt") is None and given == "prompt" and not isinstance(answers[0], str):
        sides = [_opened(parse_messages(answer), record) for answer in answers]
        return _pair(sides[0], sides[1], which, share)
    asked = parse_prompt(_with_input(_said(record, given), record))
    if any(isinstance(answer, str) for answer in answers):
        return _replies(cut(_opened(asked, record), which)[0], answer_text(answers[0]), answer_text(answers[1]), share)
    sides = [_opened(_continued(asked, parse_messages(answer)), record) for answer in answers]
    fields = _pair(sides[0], sides[1], which, share)
    del fields["response"]
    return fields


def _compared(record: Record, which: Turns) -> Fields:
    better, worse = preferred(record)
    return _preference({**record, "chosen": better, "rejected": worse, "p_chosen": None}, which)


def _replies(prompt: list[Message], better: str, worse: str, share: float) -> Fields:
    """Return two replies to a prompt; the same one twice is no pair."""
    if better == worse:
        return {"prompt": prompt, "chosen": None, "rejected": None, "p_chosen": None}
    return {"prompt": prompt, "chosen": better, "rejected": worse, "p_chosen": share}


def _continued(prompt: list[Message], turns: list[Message]) -> list[Message]:
    """Return the whole conversation: `turns` with the prompt before them, or as they are where they begin with it.

    Raises:
        ValueError: they begin with something else.
    """
    said = [turn for turn in turns if turn["role"] != "system"]
    if [turn["role"] for turn in said] == ["assistant"]:
        return [*prompt, *said]
    asked = [turn for turn in prompt if turn["role"] != "system"]
    if [_words(turn) for turn in said[: len(asked)]] != [_words(turn) for turn in asked]:
        raise WrongValue("the answers are conversations that don't begin with `prompt`", "drop or rename `prompt`")
    lead = [turn for turn in (*prompt[:1], *turns[:1]) if turn["role"] == "system"][:1]
    return [*lead, *asked, *said[len(asked) :]]


def _words(turn: Message) -> tuple[str, list[str]]:
    return turn["role"], turn["content"].split()


def _cai_conversation(record: Record, _which: Turns) -> Fields:
    fields: Fields = {"prompt": parse_prompt(_said(record, "init_prompt"))}
    _present(record, "revision_response")
    names = {"response": "init_response", "critique": "critic_response", "revision": "revision_response"}
    fields |= {ours: _text(record, theirs) for ours, theirs in names.items()}
    if record.get("messages"):
        fields["messages"] = parse_messages(record["messages"])
    if record.get("chosen") and record.get("rejected"):
        answers = decode_answers(_answer(record, "chosen"), _answer(record, "rejected"))
        fields |= _replies(fields["prompt"], answer_text(answers[0]), answer_text(answers[1]), 1.0)
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


def _table(_record: Record, _which: Turns) -> Fields:
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


def _answer(record: Record, name: str) -> Any:
    """Return an answer: a text, a message list, or the list of the one message that is given."""
    value = _present(record, name)
    return [value] if isinstance(value, Mapping) and is_turns([value]) else _said(record, name)


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
    return any(is_turns(record.get(name)) for name in _CONVERSATIONS)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORMATS: Mapping[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            "cai_conversation",
            "init_prompt, init_response, critic_response, revision_response, chosen, rejected",
            _names("init_prompt init_response critic_response revision_response prompt messages chosen rejected"),
            lambda record: _has("init_prompt")(record) and "revision_response" in record,
            _cai_conversation,
        ),
        Format("red_team", "transcript and its ratings", _names("transcript"), _has("transcript"), _red_team),
        Format(
            "hh",
            "chosen and rejected transcripts of Human and Assistant turns",
            _names("chosen rejected"),
            lambda record: is_transcript(record.get("chosen")) and is_transcript(record.get("rejected")),
            _hh,
        ),
        Format(
            "preference",
            "prompt, chosen, rejected as text or messages",
            _names("prompt chosen rejected p_chosen"),
            _has("chosen", "rejected"),
            _preference,
        ),
        Format(
            "ultrachat",
            "prompt, prompt_id, messages",
            _names("prompt messages"),
            lambda record: _has("prompt_id", "messages")(record) and is_turns(record["messages"]),
            _messages,
        ),
        Format(
            "messages",
            "messages: [{role, content}]",
            _names("messages"),
            lambda record: is_turns(record.get("messages")),
            _messages,
        ),
        Format(
            "nemo",
            "system, conversations: [{from, value, label}], mask",
            _names("conversations system"),
            lambda record: "mask" in record and is_turns(record.get("conversations")),
            _sharegpt,
        ),
        Format(
            "sharegpt",
            "conversations: [{from, value}] or [{role, content}]",
            _names("conversations conversation items system"),
            _sharegpt_fits,
            _sharegpt,
        ),
        Format(
            "alpaca",
            "instruction, input, output",
            _names("instruction input output"),
            _has("instruction", "output"),
            _alpaca,
        ),
        Format(
            "prompt",
            "prompt as text, transcript or messages; completion where there is one",
            _names("prompt completion"),
            _has("prompt"),
            _prompt,
        ),
        Format(
            "nemo_preference",
            "alternating lines of {text}: chosen, rejected",
            _names("chosen rejected"),
            lambda _: False,
            _nemo_preference,
            group=2,
        ),
        Format(
            "compared",
            "prompt, two answers such as response_0 and response_1, and which is preferred",
            _names("prompt chosen rejected p_chosen"),
            lambda _: False,
            _compared,
        ),
        Format("table", "any columns, kept as they are", frozenset(), lambda _: True, _table),
    )
}
"""Every format by name, the most telling first: detection takes the first that fits."""


_MEANT = re.compile(
    r"(?i)(input|context_?(str|string)?s?|passages?|documents?|history|tools|functions|images?|audio|videos?|label|weight)"
)


def overlooked(columns: Iterable[str]) -> list[str]:
    """Return a note for each further column that, by its name, says something that `prompt` and the replies don't have."""
    return [
        f"`{name}` is kept as a column, and no part of `prompt` or of a reply" for name in columns if _MEANT.fullmatch(name)
    ]


class Detected(NamedTuple):
    """The format that records are in, and why it was taken."""

    format: Format
    why: str


def detect(records: Sequence[Record]) -> Detected:
    """Return the first format that at least half of `records` fit, or else that the most do. Without records: `table`.

    Lists under a name that conversations have are taken for some, even where they are broken.
    """
    fitting = {name: sum(map(entry.fits, records)) for name, entry in FORMATS.items() if name != "table"}
    telling = (name for name, fit in fitting.items() if fit and 2 * fit >= len(records))
    name, seen = next(telling, max(fitting, key=fitting.__getitem__)), f"of the first {len(records)} records"
    if fitting[name]:
        return Detected(FORMATS[name], f"{fitting[name]} {seen} have {FORMATS[name].describe}")
    for name, column in (("messages", "messages"), ("sharegpt", "conversations")):
        if records and all(isinstance(record.get(column), list) for record in records):
            return Detected(
                FORMATS[name], f"{len(records)} {seen} have lists of `{column}`"
            )  # and what is wrong with them is told
    return Detected(FORMATS["table"], f"none {seen} has the fields of another format")
