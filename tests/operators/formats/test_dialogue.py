"""Turns: transcripts and message lists, as data sets really write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.operators.formats.dialogue import (
    answer_text,
    cut,
    parse_messages,
    parse_prompt,
    parse_transcript,
    parse_transcripts,
)

line = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
    .map(str.strip)
    .filter(bool)
    .filter(lambda text: ":" not in text)
)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


@given(st.lists(line, min_size=1, max_size=8))
def test_a_transcript_gives_back_every_turn(contents: list[str]) -> None:
    text = "".join(f"\n\n{('Human', 'Assistant')[place % 2]}: {content}" for place, content in enumerate(contents))
    assert parse_transcript(text) == turns(*contents)


def test_a_transcript_keeps_colons_and_blank_lines_within_turns() -> None:
    text = "\n\nHuman: Say: hi\n\nand more\n\nAssistant: Note: Human: isn't a turn here"
    assert parse_transcript(text) == turns("Say: hi\n\nand more", "Note: Human: isn't a turn here")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_of_a_transcript_end_as_on_any_system(end: str) -> None:
    text = "\n\nHuman: a\nb\n\nAssistant: c\n\nand d\n\nHuman: e".replace("\n", end)
    assert parse_transcript(text) == turns("a\nb", "c\n\nand d", "e")


def test_neighbours_of_one_role_become_one_turn() -> None:
    assert parse_transcript("\n\nHuman: a\n\nHuman: b\n\nAssistant: c") == turns("a\n\nb", "c")


def test_an_empty_last_turn_is_an_empty_answer() -> None:
    assert cut(parse_transcript("\n\nHuman: a\n\nAssistant:"), "all") == (turns("a"), "")


@pytest.mark.parametrize("text", ["no turn", "lead\n\nHuman: a", "", None, 3])
def test_what_is_no_transcript_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="transcript must"):
        parse_transcript(text)


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        [{"from": "User", "value": "a"}, {"from": "Assistant", "value": "b", "label": None}],
        [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": [{"type": "text", "value": "b"}]}],
        [{"role": "human", "content": "a"}, {"role": "gpt", "content": [{"type": "text", "text": "b"}]}],
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
    ],
)
def test_message_lists_of_all_spellings(value: Any) -> None:
    assert parse_messages(value) == turns("a", "b")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must not be empty"),
        ("text", "must be a list, got str"),
        (
            [{"role": "tool", "content": "x"}],
            "a tool's turn \\(role 'tool'\\); tool calls are read in whole conv",
        ),
        ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "c"}]}], "calls a tool \\(`tool_calls`\\)"),
        ([{"role": "assistant", "content": "x", "weight": 0}], "`weight: 0`"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}], "isn't text, of type 'image_url'"),
        ([{"role": "nobody", "content": "x"}], "unknown role 'nobody'"),
        ([{"role": "user", "content": 3}], "content must be text, got int"),
        (["text"], "a message must be a mapping"),
    ],
)
def test_broken_message_lists_say_what_is_wrong(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_messages(value)


def test_cut_takes_all_turns_or_the_first() -> None:
    dialogue = parse_messages([{"role": "system", "content": "s"}, *turns("a", "b", "c", "d")])
    assert cut(dialogue, "all") == (dialogue[:4], "d")
    assert cut(dialogue, "first") == (dialogue[:2], "b")
    assert cut(dialogue[:4], "all") == (dialogue[:4], None)
    with pytest.raises(ValueError, match="no human turn"):
        cut(dialogue[:1], "all")


def test_prompts_in_all_forms() -> None:
    assert parse_prompt("  as it is\n") == turns("  as it is\n")
    for text in (
        "Human: a noun?",
        "System: slow",
        "[{1}] is it JSON?",
        '[{"role": "user", "content": "hi"}] too?',
        "[" * 99_999,
    ):
        assert parse_prompt(text) == turns(text)
    assert parse_prompt(json.dumps(turns("a", "b", "c"))) == turns("a", "b", "c")
    assert parse_prompt(turns("a", "b", "c")) == turns("a", "b", "c")
    with pytest.raises(ValueError, match="must not be empty"):
        parse_prompt(" ")


def test_answers_as_text_or_messages() -> None:
    assert answer_text("x") == "x"
    assert answer_text(turns("a", "b")) == "b"
    with pytest.raises(ValueError, match="must be the assistant's, got role 'user'"):
        answer_text(turns("a"))


PIECES = st.lists(
    st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "\n\n  Assistant:", "\n", " a", " b", "\r\n\r\nHuman:", "x\n\n"]),
    max_size=6,
)


@given(PIECES, PIECES, PIECES)
def test_a_beginning_that_two_transcripts_share_is_read_as_in_each(
    shared: list[str], better: list[str], worse: list[str]
) -> None:
    texts = [f"\n\nHuman: hi{''.join([*shared, *end])}\n\nAssistant: {''.join(end)}." for end in (better, worse)]
    if any("Human:" in text.replace("\r\n", "\n").rpartition("\n\nAssistant:")[2] for text in texts):
        return  # somebody asks last: another rule
    assert list(parse_transcripts(*texts)) == [parse_transcript(text) for text in texts]
