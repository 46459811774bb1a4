"""What the screen shows of a step's latest row."""

from __future__ import annotations

from typing import Any

import pytest

from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.sample import sample
from caiflow.engine.operator import RowOperator, StepContext
from caiflow.operators.critique import Critique, CritiqueParams
from caiflow.operators.generate import Generate, GenerateParams
from caiflow.operators.judge import Judge
from caiflow.operators.judging.params import JudgeParams
from caiflow.operators.revise import Revise, ReviseParams

ROW: dict[str, Any] = {
    "uid": "u",
    "prompt": [{"role": "user", "content": "How?"}],
    "response": "the source's",
    "critique": "rude",
}
GIVEN = {"input": "red", "model": "base"}


@pytest.mark.parametrize(
    ("operator", "made", "shown"),
    [
        (
            Generate(GenerateParams.model_validate(GIVEN), StepContext()),
            {"response": "the model's", "truncated": False, "thought": "hm"},
            ("prompt", "How?", "response", "the model's"),
        ),
        (
            Critique(CritiqueParams.model_validate(GIVEN), StepContext()),
            {"principle": "kind", "critique": "too short", "round": 1},
            ("response", "the source's", "critique", "too short"),
        ),
        (
            Revise(ReviseParams.model_validate(GIVEN), StepContext()),
            {"revision": "kinder"},
            ("response", "the source's", "revision", "kinder"),
        ),
        (
            Judge(JudgeParams.model_validate({**GIVEN, "candidates": "responses"}), StepContext()),
            {"outcome": "first", "rejected": "no", "chosen": "yes"},
            ("prompt", "How?", "chosen", "yes"),
        ),
    ],
)
def test_an_answer_of_the_source_is_shown_only_where_the_step_reads_it(
    operator: RowOperator[Any], made: dict[str, Any], shown: tuple[str, ...]
) -> None:
    step = FlowStep("one", operator, "red", "identity", "namespace")
    assert sample(step.view(ROW), [made]) == shown


def test_nothing_made_is_nothing_shown() -> None:
    assert sample({"uid": "u", "prompt": "How?"}, []) == ("prompt", "How?", "", "")
