"""Adherence: which principle a model keeps to, before and after, with intervals that hold the truth."""

from __future__ import annotations

import asyncio
import json
from math import log
from pathlib import Path
from random import Random
from typing import Any

import pytest

from caiflow.engine.constitution.load import load_constitution
from caiflow.engine.operator import Expected, Job, StepContext
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.operators.evaluate import Evaluate
from caiflow.operators.evaluation.conduct.adherence import figures
from caiflow.operators.evaluation.params import EvaluateParams
from caiflow.operators.judging.prompts import user
from support.row_llm import Asked, RuleLLM, RuleLLMs
from support.small_constitution import small_constitution

FIELDS: dict[str, Any] = {"models": ["before", "after"], "adherence": {"input": "probes", "model": "judge"}}


def evaluate(**fields: Any) -> Evaluate:
    return Evaluate(EvaluateParams.model_validate({**FIELDS, **fields}), StepContext(seed=3, constitution=small_constitution()))


def scenarios(folder: Path, *principles: str) -> dict[str, Rows]:
    with RowsWriter(folder / "probes", {"uid": "text", "prompt": "messages", "principle": "text"}) as out:
        out.write_rows(
            [{"uid": f"{p}.{n}", "prompt": [user(f"{p} {n}")], "principle": p} for p in principles for n in range(10)]
        )
    return {"probes": Rows(folder / "probes")}


def judged(asked: Asked) -> dict[str, float]:
    """A judge who takes a good answer for one that keeps to what it is told to look for."""
    text, _, principle = asked.last.partition("keep to this:")
    kept = "good" in text and "Rewrite by p" in principle
    return {"Yes": log(0.9 if kept else 0.2), "No": log(0.1 if kept else 0.8)}


def test_each_principle_has_a_rate_and_what_changed(tmp_path: Path) -> None:
    before = RuleLLM(lambda asked: "good" if asked.last.startswith("p1") else "bad")
    after = RuleLLM(lambda asked: "bad" if asked.last.startswith("p3") else "good")
    (tmp_path / "out").mkdir()
    judge = RuleLLM(choose_by=judged)
    llms = RuleLLMs({"before": before, "after": after, "judge": judge})
    job = Job(tmp_path / "out", scenarios(tmp_path, "p1", "p2", "p3"))
    found = json.loads(json.dumps(asyncio.run(evaluate().measure(job, llms)), allow_nan=False))["adherence"]
    rates = {model: {name: rate["rate"] for name, rate in own.items()} for model, own in found.items()}
    assert rates == {
        "before": {"p1": 1.0, "p2": 0.0, "p3": 0.0, "p4": None, "whole": pytest.approx(1 / 3)},
        "after": {"p1": 1.0, "p2": 1.0, "p3": 0.0, "p4": None, "whole": pytest.approx(2 / 3)},
    }
    changes = {name: rate.get("change") for name, rate in found["after"].items()}
    assert [changes[name] and changes[name]["mean"] for name in ("p1", "p2", "p3", "p4")] == [0.0, 1.0, 0.0, None]
    assert 0.5 < changes["p2"]["low"] < changes["p2"]["high"] == 1.0, "ten of ten isn't certainty"
    assert "change" not in found["before"]["p2"]
    assert "p1 0" in judge.asked[0].last
    assert "Rewrite by p1." in judge.asked[0].last


def test_the_interval_of_a_change_holds_the_truth_as_often_as_it_says() -> None:
    """A model that keeps to a principle in 40% of scenarios, and one that does in 70%, of 30: planted, and found again."""
    held = 0
    for trial in range(300):
        rng = Random(trial)
        sides = {
            model: [row("p1", str(n), rng.random() < share) for n in range(30)] for model, share in (("a", 0.4), ("b", 0.7))
        }
        change = figures(sides, ["p1"])["b"]["p1"]["change"]
        held += change["low"] <= 0.3 <= change["high"]
    assert 0.92 <= held / 300 <= 0.99


def row(principle: str, uid: str, met: bool) -> Row:
    return {"principle": principle, "uid": uid, "failed": None, "grades": {"adheres": met}}


def test_what_is_missing_is_told_before_a_model_is_asked(tmp_path: Path) -> None:
    without = Evaluate(EvaluateParams.model_validate(FIELDS), StepContext())
    assert [told.message for told in without.check()] == ["there are no principles to keep to"]
    named = evaluate(inputs={"adherence": "probes"})
    assert [told.message for told in named.check()] == ["the scenarios have this name"]
    law = load_constitution([{"id": "whole", "rule": "Be kind."}])
    taken = Evaluate(evaluate().params, StepContext(constitution=law))
    assert [told.message for told in taken.check()] == ["`whole` is the name of all principles together in the figures"]
    assert evaluate().calls_expected({"probes": Expected(30, exact=True)}) == (120, False)
    assert evaluate().needs() == {"probes": ["prompt", "principle"]}
    (tmp_path / "out").mkdir()
    job, said = Job(tmp_path / "out", scenarios(tmp_path, "p9")), RuleLLM()
    with pytest.raises(ValueError, match=r"the constitution has no principle 'p9', of row p9\.0; it has p1, p2, p3, p4"):
        asyncio.run(evaluate().measure(job, RuleLLMs({"before": said, "after": said, "judge": said})))
    assert not said.asked


def test_a_principles_text_is_part_of_what_the_figures_depend_on() -> None:
    other = StepContext(seed=3, constitution=small_constitution(p2="Another text."))
    assert Evaluate(evaluate().params, other).identity() != evaluate().identity()
