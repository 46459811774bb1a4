"""Formats: each is recognised by its fields and gives caiflow's columns; the records are as the data sets publish them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from caiflow.operators.formats.parse import FORMATS, detect

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
LONG = [*CHAT, {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]
ASKED = CHAT[:1]

RECORDS: dict[str, dict[str, Any]] = {
    "hh": {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    "red_team": {"transcript": "\n\nHuman: q\n\nAssistant: a", "rating": 3.0, "num_params": "52B", "tags": None},
    "cai_conversation": {
        "init_prompt": "q",
        "init_response": "a",
        "critic_prompt": "what is wrong?",
        "critic_response": "much",
        "revision_prompt": "mend it",
        "revision_response": "better",
        "prompt": "q",
        "messages": LONG,
        "chosen": [*ASKED, {"role": "assistant", "content": "better"}],
        "rejected": CHAT,
    },
    "ultrachat": {"prompt": "q", "prompt_id": "x1", "messages": LONG},
    "messages": {"messages": LONG, "source": "s"},
    "sharegpt": {"id": "1", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "nemo": {
        "system": "be kind",
        "conversations": [{"from": "User", "value": "q", "label": None}, {"from": "Assistant", "value": "a", "label": None}],
        "mask": "User",
        "dataset": "d",
    },
    "preference": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "prompt": {"prompt": "q", "topic": "t"},
    "table": {"text": "anything"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_formats_are_recognised_by_content(name: str) -> None:
    assert detect([RECORDS[name]]).format.name == name


def test_detection_goes_by_the_most_records() -> None:
    assert detect([{"broken": 1}, RECORDS["hh"], RECORDS["hh"]]).format.name == "hh"
    assert detect([]).format.name == "table"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("hh", {"prompt": ASKED, "response": "good", "chosen": "good", "rejected": "bad", "p_chosen": 1.0}),
        ("red_team", {"prompt": ASKED, "response": "a"}),
        (
            "cai_conversation",
            {
                "prompt": ASKED,
                "response": "a",
                "critique": "much",
                "revision": "better",
                "messages": LONG,
                "chosen": "better",
                "rejected": "a",
                "p_chosen": 1.0,
            },
        ),
        ("ultrachat", {"prompt": LONG[:3], "response": "b", "messages": LONG}),
        ("messages", {"prompt": LONG[:3], "response": "b", "messages": LONG}),
        ("sharegpt", {"prompt": ASKED, "response": "a", "messages": CHAT}),
        (
            "nemo",
            {
                "prompt": [{"role": "system", "content": "be kind"}, *ASKED],
                "response": "a",
                "messages": [{"role": "system", "content": "be kind"}, *CHAT],
            },
        ),
        ("preference", {"prompt": ASKED, "chosen": "good", "rejected": "bad", "p_chosen": 1.0}),
        ("alpaca", {"prompt": ASKED, "response": "a"}),
        ("prompt", {"prompt": ASKED}),
        ("table", {}),
    ],
)
def test_each_format_gives_the_canonical_columns(name: str, fields: dict[str, Any]) -> None:
    assert FORMATS[name].parse(RECORDS[name], "all") == fields


def test_first_turn_only_has_the_answer_to_that_turn() -> None:
    assert FORMATS["messages"].parse({"messages": LONG}, "first") == {"prompt": ASKED, "response": "a", "messages": CHAT}


def test_hh_keeps_all_turns_and_drops_the_pair_where_prompts_differ() -> None:
    dialogue = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: "
    same = FORMATS["hh"].parse({"chosen": dialogue + "x", "rejected": dialogue + "y"}, "all")
    assert (len(same["prompt"]), same["chosen"], same["rejected"]) == (3, "x", "y")
    other = {"chosen": dialogue + "x", "rejected": "\n\nHuman: else\n\nAssistant: y"}
    parsed = FORMATS["hh"].parse(other, "all")
    assert (parsed["response"], parsed["chosen"], parsed["rejected"], parsed["p_chosen"]) == ("x", None, None, None)
    assert FORMATS["hh"].parse({"chosen": dialogue + "x", "rejected": dialogue + "x"}, "all")["chosen"] is None


def test_preference_takes_message_lists_without_a_prompt_and_soft_labels() -> None:
    record = {"chosen": CHAT, "rejected": [*ASKED, {"role": "assistant", "content": "c"}]}
    parsed = FORMATS["preference"].parse(record, "all")
    assert (parsed["prompt"], parsed["chosen"], parsed["rejected"]) == (ASKED, "a", "c")
    assert FORMATS["preference"].parse({**RECORDS["preference"], "p_chosen": "0.7"}, "all")["p_chosen"] == 0.7


def test_a_system_turn_that_only_the_conversations_have_is_kept() -> None:
    lead = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    chosen, rejected = ([*lead, {"role": "assistant", "content": text}] for text in ("good", "bad"))
    parsed = FORMATS["preference"].parse({"prompt": "q", "chosen": chosen, "rejected": rejected}, "all")
    assert (parsed["prompt"], parsed["chosen"], parsed["rejected"]) == (lead, "good", "bad")


def test_nemo_preferences_are_pairs_of_texts() -> None:
    start = "<extra_id_0>System\n\n<extra_id_1>User\nq\n<extra_id_1>Assistant\n<extra_id_2>quality:4\n"
    parsed = FORMATS["nemo_preference"].parse({"chosen": start + "good", "rejected": start + "bad"}, "all")
    assert (parsed["prompt"], parsed["chosen"], parsed["rejected"]) == (ASKED, "good", "bad")
    other = {"chosen": (start + "good").replace("\n", "\r\n"), "rejected": start + "bad"}
    assert FORMATS["nemo_preference"].parse(other, "all") == parsed


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "table"])
def test_a_record_without_the_fields_says_which_one(name: str) -> None:
    with pytest.raises(ValueError, match=r"^no `\w+`; it has `other`$"):
        FORMATS[name].parse({"other": 1}, "all")


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("prompt", {"prompt": None}, "`prompt` is null"),
        ("prompt", {"prompt": ""}, "the prompt must not be empty"),
        ("prompt", {"prompt": 5}, "`prompt` must be a text or a list of messages, got 5"),
        ("prompt", {"prompt": "q", "completion": {"a": 1}}, "`completion` must be a text or a list of messages, got {'a': 1}"),
        ("sharegpt", {"conversation": None}, "`conversation` is null"),
        ("cai_conversation", {"init_prompt": 2.5}, "`init_prompt` must be a text or a list of messages, got 2.5"),
        ("preference", {"prompt": None, "chosen": "good", "rejected": "bad"}, "`prompt` is null"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": 1}, "`rejected` must be a text or a list of messages, got 1"),
    ],
)
def test_a_value_that_says_nothing_is_told_by_its_name(name: str, record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FORMATS[name].parse(record, "all")


@pytest.mark.parametrize(("share", "shown"), [(7, "7"), ("", "''"), ("most", "'most'"), ("nan", "'nan'"), ([1], "[1]")])
def test_a_share_that_is_none_is_told_by_its_name(share: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=f"^`p_chosen` must be a number from 0 to 1, got {re.escape(shown)}$"):
        FORMATS["preference"].parse({**RECORDS["preference"], "p_chosen": share}, "all")


def test_broken_conversations_are_not_taken_for_a_table() -> None:
    wrong = [{"messages": [{"role": "usr", "content": "Hi"}]}, {"messages": [{"role": "user", "text": "Hi"}]}]
    assert detect(wrong).format.name == "messages"
    assert detect([{"conversations": [{"from": "nobody", "value": "Hi"}]}]).format.name == "sharegpt"
    assert detect([{"messages": 3}]).format.name == "table"
