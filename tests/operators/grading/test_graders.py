"""Graders: what is asked, how replies are read, and what is refused before anything is asked."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from pydantic import ValidationError

from caiflow.engine.errors import EngineError, WrongValue
from caiflow.engine.operator import StepContext
from caiflow.operators.grade import Grade as GradeStep
from caiflow.operators.grade import GradeParams
from caiflow.operators.grading.graders import Grade, grade, named_reply, truth
from caiflow.operators.grading.params import Grader, Grading, columns
from caiflow.operators.judging.prompts import user
from support.row_llm import Asked, RuleLLM

ROW = {"uid": "r", "prompt": [user("hello"), {"role": "assistant", "content": "hi"}, user("how?")], "source": "forum"}


def graded(llm: RuleLLM, answer: str = "so", row: dict[str, Any] = ROW, **how: Any) -> Grade:
    return asyncio.run(grade(Grading.model_validate(how), row, answer, llm))


def test_a_grade_is_the_mean_of_the_replies_numbers_under_their_probabilities() -> None:
    llm = RuleLLM(choose_by=lambda asked: {"1": math.log(0.1), "2": math.log(0.2), "3": math.log(0.1)})
    found = graded(llm, question="How harmful? {{ response }}", replies={"1": 1, "2": 2, "3": 3}, prefill="(")
    assert found.value == pytest.approx(2.0)
    assert llm.asked == [Asked("choose", [user("How harmful? so")], prefill="(", choices=("1", "2", "3"))]


def test_the_question_sees_the_conversation_and_the_rows_columns() -> None:
    llm = RuleLLM(choose_by=lambda asked: {"Yes": 0.0, "No": -9.0})
    question = "{{ conversation }}|{{ request }}|{{ response }}|{{ prompt | length }}|{{ source }}"
    graded(llm, question=question)
    assert llm.asked[0].last == "Human: hello\n\nAssistant: hi\n\nHuman: how?\n\nAssistant: so|how?|so|3|forum"
    assert columns(Grading(question=question)) == ["source"]


def test_without_a_question_the_models_own_template_reads_the_conversation() -> None:
    llm = RuleLLM(choose_by=lambda asked: {"unsafe": -0.1, "safe": -3.0})
    found = graded(llm, replies={"unsafe": 1, "safe": 0})
    assert llm.asked[0].prompt == [*ROW["prompt"], {"role": "assistant", "content": "so"}]
    assert found.value == pytest.approx(1 / (1 + math.exp(-2.9)))


def test_a_classifiers_label_is_its_probability() -> None:
    llm = RuleLLM(classify_by=lambda asked: {"toxic": math.log(0.7), "fine": math.log(0.3)})
    assert graded(llm, question="{{ response }}", label="toxic").value == pytest.approx(0.7)
    assert llm.asked[0] == Asked("classify", "so")
    with pytest.raises(EngineError, match=r"no label 'Toxic'; its labels are toxic, fine"):
        graded(llm, label="Toxic")


def test_the_answer_before_is_graded_too_and_each_principle_says_how_far_it_moved_the_grade() -> None:
    fields = {"input": "rows", "model": "judge", "question": "{{ response }}", "into": "harm", "before": "response"}
    step = GradeStep(GradeParams.model_validate(fields), StepContext())
    assert step.needs() == {"rows": ["prompt", "revision|response|chosen", "response"]}
    assert (step.calls(), step.writes()) == (2, {"harm": "number", "harm_response": "number"})
    llm = RuleLLM(
        choose_by=lambda asked: (
            {"Yes": math.log(0.9), "No": math.log(0.1)} if asked.last == "bad" else {"No": 0.0, "Yes": -99.0}
        )
    )
    rows = [
        {
            **ROW,
            "uid": str(i),
            "response": "bad",
            "revision": "good" if i < 6 else "bad",
            "principle": "kind" if i < 6 else "idle",
        }
        for i in range(10)
    ]
    made = [{**row, **asyncio.run(step.row(row, llm))} for row in rows]
    assert (made[0]["harm"], made[0]["harm_response"]) == (pytest.approx(0, abs=1e-9), pytest.approx(0.9))
    told = step.metrics(made, {})["by_principle"]
    assert {name: one["grade_moved"]["mean"] for name, one in told.items()} == {"kind": pytest.approx(-0.9), "idle": 0}
    assert told["kind"]["grade_moved"]["high"] < 0 < told["idle"]["grade_moved"]["high"]
    without = GradeStep(GradeParams(input="rows", model="judge"), StepContext())
    assert (without.calls(), dict(without.metrics(made, {}))) == (1, {})


REPLIES = [
    ("Yes", "Yes"),
    ("yes.", "Yes"),
    ("**No**, since it only warns.", "No"),
    ("Answer: No\n", "No"),
    ("YES!", "Yes"),
    ("[[Yes]]", "Yes"),
    ("Yes or No", None),
    ("Not yes", None),
    ("It isn't a yes.", None),
    ("Nothing of the kind", None),
    ("Yesterday", None),
    ("", None),
]


@pytest.mark.parametrize(("said", "reply"), REPLIES)
def test_a_reply_is_named_once_and_whole(said: str, reply: str | None) -> None:
    assert named_reply(said, ("Yes", "No")) == reply


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("4", "4"),
        ("(4)", "4"),
        ("4/5", None),
        ("14", None),
        ("3.5", None),
        ("Rating: 4.", "4"),
        ("4, not 5", None),
        ("3-4", None),
    ],
)
def test_a_number_isnt_found_in_another(said: str, reply: str | None) -> None:
    assert named_reply(said, ("1", "2", "3", "4", "5")) == reply


def test_unsafe_isnt_safe() -> None:
    assert named_reply("unsafe\nS1", ("safe", "unsafe")) == "unsafe"
    assert named_reply("safe", ("safe", "unsafe")) == "safe"
    for said in (
        "not safe",
        "It isn\u2019t safe.",
        "It can't be called safe",
        "not at all safe",
        "far from safe",
        "cannot be considered safe",
    ):
        assert named_reply(said, ("safe", "unsafe")) is None, said
    assert named_reply("It does not help to do harm. Safe", ("safe", "unsafe")) == "safe"


def test_grades_read_otherwise_are_made_anew_and_others_are_not() -> None:
    def identity(**how: Any) -> Any:
        return GradeStep(GradeParams(input="rows", model="judge", **how), StepContext()).identity()

    assert "reading" in identity(method="text")
    assert "reading" not in identity()


def test_text_that_cant_be_read_has_no_grade() -> None:
    answers = {"a": "Yes", "b": "I would rather not say"}
    llm = RuleLLM(lambda asked: answers[asked.last])
    found = [graded(llm, answer=text, question="{{ response }}", method="text") for text in answers]
    assert [one.value for one in found] == [1.0, None]
    assert found[1].said == "I would rather not say"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"question": "{{ oops"}, "not a Jinja template"),
        ({"replies": {"Yes": 1}}, "at least 2 items"),
        ({"replies": {"Yes": 1, "No": 1}}, "two different numbers"),
        ({"label": "toxic", "method": "text"}, "read by itself, without method"),
        ({"label": "toxic", "replies": {"a": 1, "b": 0}}, "read by itself, without replies"),
        ({"replies": {"Yes": 1, "yes": 0}, "method": "text"}, "the same but for their case"),
    ],
)
def test_what_cant_be_asked_is_refused_before(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Grading.model_validate(how)


def test_a_question_is_kept_within_the_sandbox() -> None:
    with pytest.raises(WrongValue, match="the template `question`"):
        graded(RuleLLM(), question="{{ ''.__class__.__mro__ }}")
    with pytest.raises(WrongValue, match="the template `question`: 'missing' is undefined"):
        graded(RuleLLM(), question="{{ missing }}")


def test_an_answer_meets_a_grader_above_the_middle_of_its_scale() -> None:
    assert Grader(model="m").bound == 0.5
    assert Grader(model="m", replies={"1": 1, "5": 5}).bound == 3
    assert Grader(model="m", replies={"1": 1, "5": 5}, above=1.5).bound == 1.5
    assert Grader(model="m", label="toxic").bound == 0.5


def test_labels_of_people_are_flags_numbers_or_named_texts() -> None:
    assert [truth(value, ()) for value in (True, False, 1, 0, 0.5, None)] == [True, False, True, False, True, None]
    assert [truth(value, ("bad",)) for value in ("bad", "good", "", None)] == [True, False, None, None]
    assert truth(math.nan, ()) is None, "what a table of numbers has where nobody labelled"
    with pytest.raises(WrongValue, match="name the texts that say yes under `met`"):
        truth("bad", ())
