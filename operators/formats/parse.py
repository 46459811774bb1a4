"""The named formats: which records each one recognises, and how it turns a record into caiflow's columns.

Owns the table of formats and the choice among them. Never reads files; a bad record is a ValueError whose text says what is
wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from caiflow.operators.formats.dialogue import Turns, is_turns, is_whole_transcript
from caiflow.operators.formats.named.compared import told_apart
from caiflow.operators.formats.named.conversations import (
    CHATS,
    SYSTEM,
    alpaca,
    is_sharegpt,
    messages,
    prompted,
    red_team,
    sharegpt,
)
from caiflow.operators.formats.named.fields import Fields, Record, has, names
from caiflow.operators.formats.named.labelled import WORSE, by_prompt, is_labelled, joined, labelled
from caiflow.operators.formats.named.layout import Format, in_twos, two_texts
from caiflow.operators.formats.named.pairs import (
    cai_conversation,
    compared,
    hh,
    is_openai,
    nemo_preference,
    openai_preference,
    preference,
)
from caiflow.operators.formats.named.questions import is_mt_bench, is_orca, mt_bench, orca
from caiflow.operators.formats.named.ranked import in_pairs, is_ranked
from caiflow.operators.formats.named.trees import by_tree, is_message, is_tree, paths_of_messages, paths_of_tree


def _table(_record: Record, _which: Turns) -> Fields:
    return {}


FORMATS: Mapping[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            "cai_conversation",
            "init_prompt, init_response, critic_response, revision_response, chosen, rejected",
            names("init_prompt init_response critic_response revision_response prompt messages chosen rejected"),
            lambda record: has("init_prompt")(record) and "revision_response" in record,
            cai_conversation,
        ),
        Format(
            "oasst",
            "prompt: {text, role, replies: [...]}, a tree of messages",
            names("prompt messages"),
            is_tree,
            messages,
            shape=paths_of_tree,
        ),
        Format(
            "oasst_messages",
            "message_id, parent_id, message_tree_id, role, text: a message of a tree",
            names("messages parent_id role text rank"),
            is_message,
            messages,
            gather=by_tree,
            shape=paths_of_messages,
        ),
        Format("red_team", "transcript and its ratings", names("transcript"), has("transcript"), red_team),
        Format(
            "hh",
            "chosen and rejected transcripts of Human and Assistant turns",
            names("chosen rejected"),
            lambda record: is_whole_transcript(record.get("chosen")) and is_whole_transcript(record.get("rejected")),
            hh,
        ),
        Format(
            "preference",
            "prompt, chosen, rejected as text or messages",
            names("prompt chosen rejected p_chosen"),
            has("chosen", "rejected"),
            preference,
        ),
        Format(
            "openai_preference",
            "input: {messages}, preferred_output, non_preferred_output",
            names("input preferred_output non_preferred_output"),
            is_openai,
            openai_preference,
        ),
        Format(
            "kto",
            "prompt and completion, or a conversation, with a label: true or false",
            frozenset(("prompt", "completion", *CHATS, "instruction", "output", WORSE)),
            is_labelled,
            labelled,
            gather=by_prompt,
            shape=joined,
        ),
        Format(
            "ultrachat",
            "prompt, prompt_id, messages",
            names("prompt messages"),
            lambda record: has("prompt_id", "messages")(record) and is_turns(record["messages"]),
            messages,
        ),
        Format(
            "messages",
            "messages: [{role, content}]",
            names("messages"),
            lambda record: is_turns(record.get("messages")),
            messages,
        ),
        Format(
            "nemo",
            "system, conversations: [{from, value, label}], mask",
            names("conversations system"),
            lambda record: "mask" in record and is_turns(record.get("conversations")),
            sharegpt,
        ),
        Format(
            "sharegpt",
            "conversations: [{from, value}] or [{role, content}]",
            names("conversations conversation items system"),
            is_sharegpt,
            sharegpt,
        ),
        Format(
            "ranked",
            "prompt and a list of answers with a rank or score each",
            names("prompt chosen rejected p_chosen"),
            is_ranked,
            preference,
            shape=in_pairs,
        ),
        Format(
            "alpaca",
            "instruction, input, output",
            names("instruction input output"),
            has("instruction", "output"),
            alpaca,
        ),
        Format(
            "prompt",
            "prompt as text, transcript or messages; completion where there is one",
            names("prompt completion"),
            has("prompt"),
            prompted,
        ),
        Format(
            "orca",
            "question with a system text, and the response",
            names("response"),
            is_orca,
            orca,
        ),
        Format("mt_bench", "turns: the user's texts, one after the other", frozenset(), is_mt_bench, mt_bench),
        Format(
            "nemo_preference",
            "alternating lines of {text}: chosen, rejected",
            names("chosen rejected"),
            lambda _: False,
            nemo_preference,
            gather=in_twos,
            shape=two_texts,
        ),
        Format(
            "compared",
            "prompt, two answers such as response_0 and response_1, and which is preferred",
            names("prompt chosen rejected p_chosen"),
            lambda _: False,
            compared,
        ),
        Format("table", "any columns, kept as they are", frozenset(), lambda _: True, _table),
    )
}


_SYSTEM = re.compile(r"(?i)(custom_?)?(system|sys|developer)_?(prompt|message|msg|text|instructions?)?|instructions")
_MEANT = re.compile(
    r"(?i)(input|rejected_response|(\w+_)?context_?(str|string)?s?|passages?|documents?|history|later_turns|tools|functions|images?|audio|videos?|label|weight)"
)


_BEFORE = re.compile(r"(?i)(context_?(str|string)?|passage|document)")
_ASKED = {"prompt": "prompt", "preference": "prompt", "kto": "prompt", "orca": "question", "alpaca": "instruction"}
"""The field of a format that has the question, where a template can take its place."""


def overlooked(columns: Collection[str], format_name: str = "") -> Mapping[str, str]:
    """Return a note for each further column that, by its name, says something that `prompt` and the replies may not have."""
    asked, marks = _ASKED.get(format_name), ("label",) if format_name == "kto" else ()
    meant = [name for name in columns if (_MEANT.fullmatch(name) or _SYSTEM.fullmatch(name)) and name not in marks]
    return {name: _noted(name, asked) for name in meant}


def uncompared(columns: Collection[str]) -> list[str]:
    """Return a note on two answers, where a column says which is preferred."""
    two = told_apart(columns)
    return [f"`{two[0]}` and `{two[1]}` are kept as columns; to learn which is better: `format: compared`"] if two else []


def _noted(name: str, asked: str | None) -> str:
    """Return the note on a column, with the line to write where it stands before what is asked."""
    told = f"`{name}` is kept as a column, and no part of `prompt` or of a reply"
    if _SYSTEM.fullmatch(name):
        return told if name in SYSTEM else f"{told}; to begin with it: `rename: {{{name}: system}}`"
    if asked is None or not _BEFORE.fullmatch(name):
        return told
    return f'{told}; to ask with it: `prompt: "{{{{ {name} }}}}\\n\\n{{{{ {asked} }}}}"`'


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
