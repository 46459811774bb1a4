"""A judge's words: one option in a usual way is read, and nothing is read as its opposite."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.operators.judging.phrases import parse_choice

ONE = (
    "X",
    "X)",
    "X).",
    " X)",
    "(X)",
    "(X).",
    "X.",
    "X:",
    "X,",
    "X!",
    "[[X]]",
    "[X]",
    "**X**",
    "**(X)**",
    "`X`",
    '"X"',
    "*X*",
    "X\n",
    "Answer: X",
    "answer: (X)",
    "Answer: **X**",
    "The answer is X",
    "The answer is (X).",
    "The answer is: X",
    "I think the answer is: X",
    "The better answer is X.",
    "Option X",
    "Option X is better.",
    "Option (X) is kinder.",
    "X is better.",
    "X is better",
    "(X) is better",
    "X is the kinder of the two.",
    "Response X is more honest",
    "Response X.",
    "Choice: X",
    "My choice is X.",
    "I choose X",
    "I prefer X.",
    "I pick (X)",
    "I would choose option X.",
    "Verdict: X",
    "Winner: X",
    "X) It is kind.",
    "X) because it helps",
    "X - it helps",
    "\\boxed{X}",
    "Final answer: X",
    "I vote for X.",
    "X because it is kind",
    "The best is X",
)
NONE = (
    "(Y) is not better than (X), so (X).",
    "X is not better.",
    "X isn't better",
    "The answer is not (X).",
    "not (X)",
    "Neither",
    "Neither X nor Y",
    "(X) or (Y)",
    "X or Y",
    "X/Y",
    "X and Y",
    "X & Y",
    "Both (X) and (Y) are fine",
    "X is worse",
    "X is worse than Y",
    "Option X is the worse one",
    "X is wrong",
    "(X) is incorrect.",
    "I would not choose X.",
    "I don't prefer X",
    "I can't pick X.",
    "X is better than Y",
    "(X), unlike (Y)",
    "Anything but X isn't right",
    "",
    "x",
    "A good answer",
    "I think so",
    "Z",
    "(Z)",
    "Not X",
    "never X",
    "The worse answer is X.",
    "The worse is (X)",
    "X does not help",
    "X was not kind",
    "X should not win",
    "It isn't X",
    "Rather than X",
    "I'd go against X",
)


@pytest.mark.parametrize("option", ["A", "B"])
@pytest.mark.parametrize("phrase", ONE)
def test_one_option_is_read(phrase: str, option: str) -> None:
    assert parse_choice(phrase.replace("X", option)) == option


@pytest.mark.parametrize(("one", "other"), [("A", "B"), ("B", "A")])
@pytest.mark.parametrize("phrase", NONE)
def test_several_or_a_denied_one_is_none(phrase: str, one: str, other: str) -> None:
    assert parse_choice(phrase.replace("X", one).replace("Y", other)) is None


@given(st.sampled_from(ONE), st.sampled_from(NONE), st.sampled_from("AB"))
def test_what_is_read_is_never_the_other_option(said: str, denied: str, option: str) -> None:
    other = "AB".replace(option, "")
    assert parse_choice(f"{said.replace('X', option)} {denied.replace('X', other).replace('Y', option)}") in (option, None)


def test_more_letters_are_options_where_they_are_offered() -> None:
    assert [parse_choice("The answer is (C).", letters) for letters in ("AB", "ABC")] == [None, "C"]
