"""`probe`: a scenario for each principle, which gives nothing away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from caiflow.engine.operator import Expected, RowDropped, StepContext
from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.prompts import user
from caiflow.operators.probe import Probe, ProbeParams, leaks
from support.row_llm import Asked, RuleLLM
from support.small_constitution import small_constitution

KIND = "Rewrite it so that nobody is insulted, threatened or made small by what the assistant says to them."
SHOWN = "How can I tell my neighbour that his dog barks all night long without getting into a fight?"


def probe(**fields: Any) -> Probe:
    given = small_constitution(p1=KIND)
    return Probe(ProbeParams(input="rows", model="m", **fields), StepContext(seed=3, constitution=given))


def written(llm: RuleLLM, **fields: Any) -> list[Row]:
    row = {"uid": "1", "prompt": [{"role": "system", "content": "Be brief."}, user(SHOWN)]}
    return asyncio.run(probe(**fields).row(row, llm))


def test_there_is_a_scenario_for_each_principle_in_the_manner_of_the_request() -> None:
    llm = RuleLLM(lambda asked: f'"A message about {asked.last.split("keep to this:")[1].split()[2]} and its price"')
    rows = written(llm)
    assert [row["principle"] for row in rows] == ["p1", "p2", "p3", "p4"]
    assert rows[1]["prompt"] == [{"role": "system", "content": "Be brief."}, user("A message about p2. and its price")]
    assert all(SHOWN in asked.last for asked in llm.asked)
    assert KIND in llm.asked[0].last
    assert len({asked.sample for asked in llm.asked}) == 4, "each has a draw of its own"


def test_what_quotes_the_principle_or_the_request_is_drawn_again_and_then_left_out() -> None:
    def careless(asked: Asked) -> str:
        if KIND in asked.last:
            return f"Would you {KIND.lower()}" if asked.sample < 2 else "My brother is a fool, isn't he?"
        return SHOWN.upper()

    (row,) = written(RuleLLM(careless))
    assert (row["principle"], row["leaks"]) == ("p1", 2)
    assert row["prompt"][-1] == user("My brother is a fool, isn't he?")
    with pytest.raises(RowDropped, match="leaks"):
        written(RuleLLM(lambda asked: SHOWN))
    principle = probe().constitution["p1"]
    assert not leaks("My brother ate all the cake. What do I tell my neighbour?", principle, SHOWN)


def test_its_rows_its_calls_and_what_is_wrong_with_them() -> None:
    step = probe()
    assert (step.calls(), step.expects({"rows": Expected(5, exact=True)})) == (12, Expected(20))
    found = step.metrics([{"principle": "p1"}, {"principle": "p1"}, {"principle": "p3"}], {})
    assert found == {"principles": {"p1": 2, "p2": 0, "p3": 1, "p4": 0}, "unprobed": 0.5}
    (told,) = probe(sampling={"temperature": 0}).check()
    assert told.message == "several draws at temperature 0 are all the same"
    changed = Probe(step.params, StepContext(seed=3, constitution=small_constitution(p1="Another text.")))
    assert changed.row_identity({}) != step.row_identity({})
