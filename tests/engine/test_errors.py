from __future__ import annotations

import pickle

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from caiflow.engine.errors import (
    CaiflowError,
    EngineError,
    Finding,
    PlanError,
    Problem,
    SpecError,
    StepError,
    StoreError,
    WrongValue,
    finding,
    refusal,
)
from caiflow.engine.registry import UnknownOperatorError

PROBLEM = Problem("a.yaml", 3, 7, "steps.x", "wrong", "do right")


@pytest.mark.parametrize(
    "error",
    [
        CaiflowError("x: wrong", "do right"),
        PlanError("x: wrong"),
        StepError("x: wrong; by itself", "do right"),
        StoreError("x: wrong", "do right"),
        UnknownOperatorError("x: wrong"),
        WrongValue("wrong", "do right"),
        EngineError("wrong", "do right", kind="timeout", retry=True),
        SpecError("x: wrong", "do right"),
        SpecError((PROBLEM, PROBLEM._replace(line=4, hint=""))),
    ],
)
def test_an_error_comes_through_pickling_with_all_it_says(error: CaiflowError | WrongValue) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_what_is_wrong_and_what_to_do_are_joined_in_the_text_alone() -> None:
    error = StepError("x: wrong; by itself", "do right")
    assert (error.message, error.hint, str(error)) == ("x: wrong; by itself", "do right", "x: wrong; by itself; do right")
    assert str(StepError("x: wrong")) == "x: wrong"
    assert str(PROBLEM) == "a.yaml:3:7: wrong; do right"


def test_a_finding_of_an_error_is_split_where_the_error_says_and_nowhere_else() -> None:
    assert finding(WrongValue("got 'a; b'", "take c"), ("x", 1)) == (("x", 1), "got 'a; b'", "take c")
    assert finding(ValueError("got 'a; b'")) == ((), "got 'a; b'", "")
    assert Finding(("max",), "too low").below("drop", 0).path == ("drop", 0, "max")


def test_a_validators_advice_comes_through_pydantic() -> None:
    class Params(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def _short(cls, value: str) -> str:
            raise WrongValue(f"too long, got {value!r}", "shorten it") if ";" in value else AssertionError("no semicolon")

    with pytest.raises(ValidationError) as caught:
        Params(name="a; b")
    assert refusal(caught.value.errors()[0]) == ("too long, got 'a; b'", "shorten it")
    with pytest.raises(ValidationError) as caught:
        Params(name="ab")
    assert refusal(caught.value.errors()[0]) == ("no semicolon", "")
