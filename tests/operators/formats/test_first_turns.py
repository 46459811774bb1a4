"""Which turn an answer is to: a prompt that is cut keeps no answer to what was cut off, and no answer in a prompt is lost."""

from __future__ import annotations

from typing import Any

import pytest

from caiflow.operators.formats.dialogue import Turns
from caiflow.operators.formats.named.fields import Fields
from caiflow.operators.formats.parse import FORMATS
from support.tables import ask

LONG = [
    {"role": "user", "content": "Tea?"},
    {"role": "assistant", "content": "In the pot."},
    {"role": "user", "content": "Milk?"},
]
ANSWERED = [*LONG, {"role": "assistant", "content": "Out."}]
RATED = [{"text": "Out.", "rank": 1}, {"text": "None.", "rank": 2}]
NO_PAIR = {"chosen": None, "rejected": None, "p_chosen": None}


def read(name: str, record: dict[str, Any], which: Turns) -> Fields:
    layout = FORMATS[name]
    (shaped,) = layout.shape([record], "best")
    return layout.parse(shaped, which)


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("prompt", {"prompt": LONG, "completion": "Out."}, {}),
        ("preference", {"prompt": LONG, "chosen": "Out.", "rejected": "None."}, NO_PAIR),
        ("ranked", {"prompt": LONG, "answers": RATED}, NO_PAIR),
        ("compared", {"prompt": LONG, "response_0": "Out.", "response_1": "None.", "preferred": 0}, NO_PAIR),
        ("kto", {"prompt": LONG, "completion": "Out.", "label": True}, {}),
        ("kto", {"prompt": LONG, "completion": "Out.", "label": False}, {"response": None, "rejected": None}),
        ("kto", {"messages": ANSWERED, "label": False}, {"response": None, "rejected": None}),
    ],
)
def test_a_first_turn_keeps_its_own_answer_alone(name: str, record: dict[str, Any], expected: Fields) -> None:
    assert read(name, record, "first") == {"prompt": ask("Tea?"), "response": "In the pot.", **expected}


@pytest.mark.parametrize("which", ["all", "first"])
def test_a_single_turn_keeps_its_answers(which: Turns) -> None:
    asked = ask("Tea?")
    assert read("prompt", {"prompt": asked, "completion": "Here."}, which) == {"prompt": asked, "response": "Here."}
    bad = {"prompt": asked, "response": None, "rejected": "No."}
    assert read("kto", {"prompt": asked, "completion": "No.", "label": False}, which) == bad
    pair = read("preference", {"prompt": asked, "chosen": "Here.", "rejected": "No."}, which)
    assert pair == {"prompt": asked, "chosen": "Here.", "rejected": "No.", "p_chosen": 1.0}


def test_an_answer_that_ends_a_prompt_is_its_response() -> None:
    assert read("prompt", {"prompt": ANSWERED}, "all") == {"prompt": LONG, "response": "Out."}
    assert read("prompt", {"prompt": [*LONG, {"role": "assistant", "content": " "}]}, "all") == {"prompt": LONG}
    assert read("prompt", {"prompt": ANSWERED, "completion": "Gone."}, "all") == {"prompt": LONG, "response": "Gone."}


@pytest.mark.parametrize("one", [1, 1.0, "1", "TRUE"])
@pytest.mark.parametrize("zero", [0, 0.0, "0", " false"])
def test_labels_may_be_numbers_where_the_step_says_that_they_are_labels(one: Any, zero: Any) -> None:
    good, bad = ({"prompt": "Tea?", "completion": "Here.", "label": label} for label in (one, zero))
    assert read("kto", good, "all") == {"prompt": ask("Tea?"), "response": "Here."}
    assert read("kto", bad, "all") == {"prompt": ask("Tea?"), "response": None, "rejected": "Here."}


def test_a_label_that_says_neither_makes_a_row_bad() -> None:
    with pytest.raises(ValueError, match="the label says neither true nor false, got 'maybe'; write one of these"):
        read("kto", {"prompt": "Tea?", "completion": "Here.", "label": "maybe"}, "all")
