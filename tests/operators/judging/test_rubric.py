"""Criteria that a row brings along are an instruction, in whatever form its column has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from caiflow.engine.errors import WrongValue
from caiflow.operators.judging.rubric import rubric_instruction

LISTED = "- (5 points) Names the cause.\n- (-2 points) Is rude."


@pytest.mark.parametrize(
    "rubric",
    [
        [{"criterion": "Names the cause.", "points": 5, "tags": ["level:example"]}, {"criterion": "Is rude.", "points": -2}],
        [{"title": "Cause", "description": "Names the cause.", "weight": 5}, {"title": "Tone", "description": "Is rude.",
                                                                             "weight": -2}],
        {"Names the cause.": 5, "Is rude.": -2},
        [{"text": "Names\nthe cause.", "score": 5}, {"requirement": "Is rude.", "max_points": -2}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("written", [lambda rubric: rubric, json.dumps])
def test_criteria_are_listed_with_their_points(rubric: Any, written: Any) -> None:
    assert LISTED in rubric_instruction(written(rubric))


def test_a_rubric_of_scores_says_what_each_stands_for() -> None:
    rubric = {"criteria": "Is it kind?", "score1_description": "Not at all.", "score2_description": "A bit."}
    assert "Is it kind?\n\nWhat a response earns:\n\n1: Not at all.\n2: A bit." in rubric_instruction(rubric)


def test_texts_are_criteria_and_nothing_is_none() -> None:
    assert "Be brief." in rubric_instruction(" Be brief. ")
    assert "- (1 point) Be brief." in rubric_instruction(["Be brief."])
    assert [rubric_instruction(value) for value in (None, "", " ", [], {})] == [""] * 5


@pytest.mark.parametrize("rubric", [[{"points": 3}], [3], [{"criterion": " "}], [{"criterion": "x", "points": "many"}]])
def test_what_is_no_criterion_is_told(rubric: Any) -> None:
    with pytest.raises(WrongValue, match="the rubric holds no criterion at"):
        rubric_instruction(rubric)
