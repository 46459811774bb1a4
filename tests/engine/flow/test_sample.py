"""What the screen shows of a step's latest row."""

from __future__ import annotations

from typing import Any

import pytest

from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.sample import LONGEST, Sample, sample
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
    ("operator", "made", "shown", "changed"),
    [
        (
            Generate(GenerateParams.model_validate(GIVEN), StepContext()),
            {"response": "the model's", "truncated": False, "thought": "hm"},
            {"prompt": "How?", "response": "the model's"},
            "",
        ),
        (
            Critique(CritiqueParams.model_validate(GIVEN), StepContext()),
            {"principle": "kind", "critique": "too short", "round": 1},
            {"prompt": "How?", "principle": "kind", "response": "the source's", "critique": "too short"},
            "",
        ),
        (
            Revise(ReviseParams.model_validate(GIVEN), StepContext()),
            {"revision": "kinder"},
            {"prompt": "How?", "response": "the source's", "critique": "rude", "revision": "kinder"},
            "response",
        ),
        (
            Judge(JudgeParams.model_validate({**GIVEN, "candidates": "responses"}), StepContext()),
            {"outcome": "first", "rejected": "no", "chosen": "yes"},
            {"prompt": "How?", "rejected": "no", "chosen": "yes"},
            "",
        ),
    ],
)
def test_an_answer_of_the_source_is_shown_only_where_the_step_reads_it(
    operator: RowOperator[Any], made: dict[str, Any], shown: dict[str, str], changed: str
) -> None:
    step = FlowStep("one", operator, "red", "identity", "namespace")
    told = sample(step.view(ROW), [made])
    assert (list(told.texts.items()), told.made, told.changed) == (list(shown.items()), list(shown)[-1], changed)


def test_a_second_revision_is_shown_beside_the_first() -> None:
    told = sample({"uid": "u", "prompt": "How?", "revision": "kind"}, [{"revision": "kinder"}])
    assert told == Sample({"prompt": "How?", "revision before": "kind", "revision": "kinder"}, "revision", "revision before")


def test_nothing_made_is_nothing_shown() -> None:
    assert sample({"uid": "u", "prompt": "How?"}, []) == Sample()


def test_of_an_endless_text_only_what_has_room_is_kept() -> None:
    told = sample({"uid": "u", "prompt": "How?"}, [{"response": "word " * 10_000}])
    assert len(told.texts["response"]) <= LONGEST
