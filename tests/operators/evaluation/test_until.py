"""`until` of `evaluate`: prompts are asked until the figures are sharp, the same ones whatever cuts the run off."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.operator import Expected, Job, StepContext
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.operators.evaluate import Evaluate
from caiflow.operators.evaluation.params import EvaluateParams
from caiflow.operators.judging.prompts import user
from caiflow.operators.measures.sequence import anytime
from support.row_llm import Asked, RuleLLM, RuleLLMs

PROMPTS = 2000


def evaluate(**fields: Any) -> Evaluate:
    given = {
        "models": ["m"], "inputs": {"red": "red"}, "standard_checks": False, "checks": {"yes": {"pattern": "yes"}},
        "until": {"interval": 10},
    }  # fmt: skip
    return Evaluate(EvaluateParams.model_validate({**given, **fields}), StepContext(seed=3))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    folder = tmp_path_factory.mktemp("red") / "rows"
    with RowsWriter(folder, {"uid": "text", "prompt": "messages"}) as out:
        out.write_rows([{"uid": str(n), "prompt": [user(f"Is it {n}?")]} for n in range(PROMPTS)])
    return {"red": Rows(folder)}


def measured(folder: Path, step: Evaluate, prompts: dict[str, Rows], **models: RuleLLM) -> dict[str, Any]:
    folder.mkdir()
    return dict(asyncio.run(step.measure(Job(folder, prompts), RuleLLMs(models))))


def saying(share: float) -> RuleLLM:
    return RuleLLM(lambda asked: "yes" if Random(asked.last).random() < share else "no")


def test_it_ends_when_the_figure_is_sharp_and_says_how_many_were_asked(tmp_path: Path, prompts: dict[str, Rows]) -> None:
    model = saying(0.3)
    found = measured(tmp_path / "out", evaluate(), prompts, m=model)
    asked = found["until"]["red"]["prompts"]
    rate = found["models"]["m"]["red"]["yes"]
    assert (len(model.asked), rate["n"], found["until"]["red"]["sharp"]) == (asked, asked, True)
    assert 100 < asked < 400
    assert (rate["low"], rate["high"]) == anytime(rate["rate"] * asked, asked)
    cut = found["models"]["m"]["red"]["truncated"]
    assert (cut["low"], cut["high"]) == anytime(0, asked), "how many were asked followed from the same answers"
    assert rate["high"] - rate["rate"] <= 0.1
    assert rate["low"] <= 0.3 <= rate["high"]
    assert [row["uid"] for row in Rows(tmp_path / "out" / "responses").pylist()][:3] != ["0", "1", "2"], "in a drawn order"


def test_the_same_prompts_are_asked_whatever_cut_the_run_off(tmp_path: Path, prompts: dict[str, Rows]) -> None:
    """The model gives up after 70 answers; asked again, the step puts the same questions from the first on."""
    whole, cut = saying(0.3), saying(0.3)
    say = cut.say

    def giving_up(asked: Asked) -> Any:
        if len(cut.asked) > 70:
            raise EngineError("gone", kind="engine_lost")
        return say(asked)

    measured(tmp_path / "whole", evaluate(), prompts, m=whole)
    cut.say = giving_up
    with pytest.raises(Exception, match="engine_lost"):
        measured(tmp_path / "cut", evaluate(), prompts, m=cut)
    asked = [one.last for one in cut.asked]
    assert 70 < len(asked) < 140
    assert asked == [one.last for one in whole.asked][: len(asked)]


def test_sets_end_each_by_itself_and_no_later_than_their_prompts(tmp_path: Path, prompts: dict[str, Rows]) -> None:
    step = evaluate(inputs={"red": "red", "few": "few"}, models=["m", "n"], graders={"kind": {"model": "j", "sets": ["red"]}})
    (tmp_path / "few").mkdir()
    with RowsWriter(tmp_path / "few" / "rows", {"uid": "text", "prompt": "messages"}) as out:
        out.write_rows([{"uid": str(n), "prompt": [user(f"Few {n}?")]} for n in range(20)])
    models = {"m": saying(0.5), "n": saying(0.0), "j": RuleLLM(choose_by=lambda asked: {"Yes": -0.1, "No": -3.0})}
    found = measured(tmp_path / "out", step, {**prompts, "few": Rows(tmp_path / "few" / "rows")}, **models)
    assert found["until"]["few"] == {"prompts": 20, "sharp": False}
    assert found["until"]["red"]["sharp"]
    assert len(models["m"].asked) == len(models["n"].asked) == found["until"]["red"]["prompts"] + 20
    assert found["models"]["m"]["red"]["kind"]["high"] == 1.0


def test_what_it_takes_at_most_is_told() -> None:
    calls = evaluate().calls_expected({"red": Expected(PROMPTS, exact=True)})
    assert calls == (PROMPTS, False)
    (told,) = evaluate(inputs={}, choices={"q": {"source": "q.jsonl"}}).check()
    assert told.message == "no set has figures to become sharp"


def test_a_grader_whose_replies_cant_be_read_makes_nothing_sharp(tmp_path: Path, prompts: dict[str, Rows]) -> None:
    """Half of its replies can't be read, so that it takes twice the prompts; a set without any has no figures."""
    with RowsWriter(tmp_path / "none", {"uid": "text", "prompt": "messages"}):
        pass
    judge = RuleLLM(lambda asked: "Who knows" if Random(asked.last).random() < 0.5 else "Yes")
    grader = {"harm": {"model": "judge", "question": "{{ request }}", "method": "text"}}
    step = evaluate(checks={}, graders=grader, inputs={"red": "red", "none": "none"})
    inputs = {**prompts, "none": Rows(tmp_path / "none")}
    found = measured(tmp_path / "out", step, inputs, m=saying(1.0), judge=judge)
    harm = found["models"]["m"]["red"]["harm"]
    assert (found["until"]["red"]["sharp"], found["until"]["none"]) == (True, {"prompts": 0, "sharp": False})
    assert harm["n"] < found["until"]["red"]["prompts"]
    assert harm["rate"] - harm["low"] <= 0.1
