"""Formats of two answers to one prompt. Never reads files; a bad record is a ValueError that says why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.base import Message
from caiflow.operators.formats.dialogue import (
    Turns,
    answer_text,
    cut,
    decode_answers,
    is_turns,
    parse_messages,
    parse_prompt,
    parse_transcript,
    parse_transcripts,
    unix_lines,
)
from caiflow.operators.formats.named.compared import preferred
from caiflow.operators.formats.named.conversations import CHATS, opened, with_input
from caiflow.operators.formats.named.fields import Fields, Record, has, present, reply, said, share_of, text_or_none

QUESTIONS = ("prompt", "instruction", "question", "query")
"""What a question to two answers is called, ours first."""


def hh(record: Record, which: Turns) -> Fields:
    """Read two transcripts."""
    return pair(*parse_transcripts(present(record, "chosen"), present(record, "rejected")), which)


def pair(chosen: Sequence[Message], rejected: Sequence[Message], which: Turns, share: float = 1.0) -> Fields:
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


def preference(record: Record, which: Turns) -> Fields:
    """Read two replies to a prompt, or two conversations with one beginning."""
    answers = decode_answers(reply(record, "chosen"), reply(record, "rejected"))
    share = 1.0 if record.get("p_chosen") is None else share_of(record["p_chosen"])
    given = _asked_in(record, answers)
    if given is None:
        sides = [opened(parse_messages(answer), record) for answer in answers]
        return pair(sides[0], sides[1], which, share)
    asked = parse_prompt(said(record, given) if given == "input" else with_input(said(record, given), record))
    if any(isinstance(answer, str) for answer in answers):
        turns = opened(asked, record)
        prompt, response = cut(turns, which)
        if len(prompt) < len(turns):  # both answer a later turn
            return {"prompt": prompt, "response": response, "chosen": None, "rejected": None, "p_chosen": None}
        return _replies(prompt, answer_text(answers[0]), answer_text(answers[1]), share)
    sides = [opened(_continued(asked, parse_messages(answer)), record) for answer in answers]
    fields = pair(sides[0], sides[1], which, share)
    del fields["response"]
    return fields


def _asked_in(record: Record, answers: Sequence[Any]) -> str | None:
    """Return the field with what two replies are to; None where these are conversations, which have it themselves."""
    whole = all(isinstance(answer, list) and len(answer) > 1 for answer in answers)
    fields = QUESTIONS[:1] if whole else (*QUESTIONS[:1], *CHATS, *QUESTIONS[1:])
    found = next((name for name in fields if record.get(name) is not None), None)
    if found or whole:
        return found
    if isinstance(record.get("input"), str):
        return "input"
    return "context" if is_turns(record.get("context")) else "prompt" if isinstance(answers[0], str) else None


def is_openai(record: Record) -> bool:
    """Return whether a record has the fields of OpenAI's preference format."""
    asked = record.get("input")
    return isinstance(asked, Mapping) and has("preferred_output", "non_preferred_output")(record) and "messages" in asked


def openai_preference(record: Record, which: Turns) -> Fields:
    """Read `input` with its messages, and the two outputs; tools that it has become a column."""
    asked = present(record, "input")
    given = {"messages": present(asked, "messages"), "chosen": present(record, "preferred_output")}
    fields = preference({**given, "rejected": present(record, "non_preferred_output")}, which)
    return {**fields, "tools": asked["tools"]} if asked.get("tools") else fields


def compared(record: Record, which: Turns) -> Fields:
    """Read two answers and which is preferred."""
    better, worse = preferred(record)
    asked, *answers = map(_strings, (record.get("prompt"), better, worse))
    if asked and all(len(side) == len(asked) for side in answers):
        sides = [
            opened([turn for texts in zip(asked, side, strict=True) for turn in _exchange(*texts)], record) for side in answers
        ]
        return pair(sides[0], sides[1], which)
    return preference({**record, "chosen": better, "rejected": worse, "p_chosen": None}, which)


def _strings(value: object) -> list[str]:
    """Return the texts of a list that is written as JSON, which arena's tables have one of for each turn; none of another."""
    try:
        found = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else []
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else []


def _exchange(asked: str, answer: str) -> tuple[Message, Message]:
    return Message(role="user", content=asked), Message(role="assistant", content=answer)


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


def cai_conversation(record: Record, _which: Turns) -> Fields:
    """Read a prompt with its first answer, the critique and the revision."""
    fields: Fields = {"prompt": parse_prompt(said(record, "init_prompt"))}
    present(record, "revision_response")
    names = {"response": "init_response", "critique": "critic_response", "revision": "revision_response"}
    fields |= {ours: text_or_none(record, theirs) for ours, theirs in names.items()}
    if record.get("messages"):
        fields["messages"] = parse_messages(record["messages"])
    if record.get("chosen") and record.get("rejected"):
        answers = decode_answers(reply(record, "chosen"), reply(record, "rejected"))
        fields |= _replies(fields["prompt"], answer_text(answers[0]), answer_text(answers[1]), 1.0)
    return fields


_NEMO_TURN = re.compile(r"<extra_id_[01]>(System|User|Assistant)\n")


def _nemo_turns(text: object) -> list[Message]:
    if not isinstance(text, str) or "<extra_id_" not in text:
        return parse_transcript(text)
    _, *parts = _NEMO_TURN.split(re.sub(r"<extra_id_2>[^\n]*\n", "", unix_lines(text)))
    turns = [Message(role=role.lower(), content=said.strip()) for role, said in zip(parts[::2], parts[1::2], strict=True)]
    return [turn for turn in turns if turn["role"] != "system" or turn["content"]]


def nemo_preference(record: Record, which: Turns) -> Fields:
    """Read two texts in the form of SteerLM."""
    return pair(_nemo_turns(present(record, "chosen")), _nemo_turns(present(record, "rejected")), which)
