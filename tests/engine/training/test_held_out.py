"""A loss is never measured on what was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import StepContext
from caiflow.engine.rows.held_out import refuse_shared
from support.small_models import job, lessons, preferences, saved, small_model
from support.trainings import TRAINERS, train

ASKED = [{"role": "user", "content": "How do I bake?"}]
RULED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "how do  I BAKE?"}]
OTHER = [{"role": "user", "content": "How do I paint?"}]


@pytest.mark.parametrize(
    ("learnt", "measured", "shared"),
    [
        ({"prompt": ASKED}, {"prompt": ASKED}, True),
        ({"prompt": ASKED, "response": "So."}, {"prompt": RULED, "chosen": "No."}, True),
        ({"prompt": ASKED}, {"prompt": OTHER}, False),
        ({"prompt": "How?"}, {"prompt": "how? "}, True),
        ({"messages": ASKED}, {"messages": ASKED}, True),
        ({"text": "So it is."}, {"text": "So it is."}, True),
        ({"text": "So it is."}, {"text": "It isn't."}, False),
        ({"text": None}, {"text": None}, False),
        ({"text": "So."}, {"prompt": ASKED}, False),
    ],
)
def test_rows_are_told_apart_by_what_they_ask(learnt: Any, measured: Any, shared: bool, tmp_path: Path) -> None:
    more = {name: None for name in learnt if name != "prompt"}
    sides = [
        saved(tmp_path / side, [{"uid": f"{side}1", **row}, {"uid": f"{side}2", **row, **more}])
        for side, row in (("train", learnt), ("test", measured))
    ]
    if shared:
        with pytest.raises(StepError, match=r"\d rows of `b` have prompts that `a` is trained on, test1 the first"):
            refuse_shared(sides[0], sides[1], ("a", "b"))
    else:
        refuse_shared(sides[0], sides[1], ("a", "b"))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_trainer_measures_on_rows_that_it_learns(trainer: str, tmp_path: Path) -> None:
    model: ModelSource = small_model(tmp_path / "model")
    kind, params_type, fields = TRAINERS[trainer]
    rows = lessons() if trainer == "sft" else preferences()
    done = job(tmp_path, {"rows": rows, "held": rows[3:5]}, base=model, judge=model)
    params = params_type.model_validate({"input": "rows", "eval_input": "held", "model": "base", **fields})
    with pytest.raises(StepError, match="2 rows of `held` have prompts that `rows` is trained on, 3 the first"):
        kind(params, StepContext()).train(done)


def test_the_input_itself_may_be_measured_on(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    done = train(tmp_path, "sft", model, eval_input="rows", learning_rate=0.0, max_steps=1)
    assert done.metrics["eval_loss"] == pytest.approx(done.metrics["saved_loss"], rel=0.05)
