"""Multiple choice: the released layout, how it is asked, and what equally likely letters are worth."""

from __future__ import annotations

import asyncio
import json
from math import log
from pathlib import Path

import pytest
from pydantic import ValidationError

from caiflow.operators.evaluation.choices import Question, credit, figures, question, read, score
from caiflow.operators.evaluation.params import ChoicesParams
from support.real_data import REAL_DATA, needs
from support.row_llm import RuleLLM, RuleLLMs

ROW = {
    "uid": "1",
    "prompt": "\n\nConsider this:\n\nHuman: hi\n\nOptions:\n (A) [[[no]]]\n (B) [[[hello]]]\n\nThe answer is:",
    "corrects": [" (B)"],
    "incorrects": [" (A)"],
}
REAL = REAL_DATA / "hhh_40.jsonl"


def test_reading_a_question() -> None:
    found = question(ROW)
    assert found.text.endswith("(B) [[[hello]]]")
    assert found.text.startswith("Consider this:")
    assert (found.letters, found.right) == (("A", "B"), frozenset("B"))


def test_lists_may_be_json_texts_and_prompts_conversations() -> None:
    loaded = {**ROW, "prompt": [{"role": "user", "content": ROW["prompt"]}], "corrects": '[" (B)"]', "incorrects": '[" (A)"]'}
    assert question(loaded) == question(ROW)


def test_nine_choices() -> None:
    row = {**ROW, "incorrects": [f" ({letter})" for letter in "ACDEFGHI"]}
    assert question(row).letters == tuple("ABCDEFGHI")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrects": []}, "a right one"),
        ({"incorrects": []}, "two to nine choices"),
        ({"corrects": ["yes"]}, "got 'yes'"),
        ({"corrects": ["(J)"]}, r"got '\(J\)'"),
    ],
)
def test_wrong_questions(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        question({**ROW, **change})


def test_a_missing_field_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps({"prompt": "x", "corrects": []}) + "\n")
    with pytest.raises(ValueError, match=r"questions.jsonl:3: .*'incorrects' is missing"):
        list(read(path))


def test_how_a_question_is_asked() -> None:
    llm = RuleLLM(choose_by=lambda asked: {"A": log(0.2), "B": log(0.6)})
    rows = asyncio.run(score("hhh", ChoicesParams(input="q"), [ROW], "base", RuleLLMs({"base": llm})))
    assert rows == [
        {
            "uid": "1",
            "questions": "hhh",
            "model": "base",
            "chosen": "B",
            "credit": 1.0,
            "p_right": pytest.approx(0.75),
            "failed": None,
        }
    ]
    (asked,) = llm.asked
    assert (asked.prefill, asked.choices) == ("The answer is: (", ("A", "B"))
    assert asked.last == question(ROW).text


def test_how_a_pretrained_model_is_asked() -> None:
    llm = RuleLLM()
    asyncio.run(score("hhh", ChoicesParams(input="q", mode="raw"), [ROW], "base", RuleLLMs({"base": llm})))
    assert llm.asked[0].prompt.endswith("(B) [[[hello]]]\n\nThe answer is: (")


def test_equally_likely_letters_share_the_credit() -> None:
    asked = Question("?", ("A", "B", "C"), frozenset("AB"))
    assert credit(asked, dict.fromkeys("ABC", -1.0))["credit"] == pytest.approx(2 / 3)
    assert credit(asked, {"A": -3.0, "B": -2.0, "C": -1.0})["credit"] == 0


def test_figures() -> None:
    rows = [
        {"credit": 1.0, "p_right": 0.9, "failed": None},
        {"credit": 0.0, "p_right": 0.3, "failed": None},
        {"credit": None, "p_right": None, "failed": "overflow"},
    ]
    found = figures(rows)
    assert (found["rate"], found["n"], found["p_right"]) == (0.5, 2, pytest.approx(0.6))
    assert figures([])["rate"] is None


@pytest.mark.parametrize("wrong", [{}, {"input": "q", "source": "q.jsonl"}])
def test_questions_have_one_source(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="either from `input` or from `source`"):
        ChoicesParams.model_validate(wrong)


@needs(REAL)
def test_the_released_comparisons_are_read_and_scored() -> None:
    rows = list(read(REAL))
    assert len(rows) == 40
    always_a = RuleLLM(choose_by=lambda asked: {letter: -float(i) for i, letter in enumerate(asked.choices)})
    scored = asyncio.run(score("hhh", ChoicesParams(input="q"), rows, "base", RuleLLMs({"base": always_a})))
    right = sum(" (A)" in row["corrects"] for row in rows)
    found = figures(scored)
    assert (found["rate"], found["n"]) == (right / 40, 40)
    assert 0 < found["low"] < found["rate"] < found["high"] < 1
