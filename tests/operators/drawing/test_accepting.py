"""`accept` and `tries`: what is drawn again, what becomes of what fails to the last, and no change where nothing fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.constitution.load import load_constitution
from caiflow.engine.operator import Operator, RowDropped, StepContext
from caiflow.engine.registry import operator as operator_type
from caiflow.engine.rows.columns import Row
from caiflow.operators.drawing.accepting import FURTHER
from support.row_llm import Asked, RuleLLM

HARMLESS = load_constitution("harmless")
CIRCLES = "I am sorry. " * 9
GOOD = "A locksmith can let you into a house which is yours."
ROW: Row = {
    "uid": "r",
    "prompt": [{"role": "user", "content": "How do I get into a house?"}],
    "response": "Break the window at the back, when nobody is there.",
}
ACCEPT: dict[str, Any] = {"accept": ["circles", "empty"], "retry_temperature": 0.7}
OPERATORS = ("generate", "critique", "revise")


def made(op: str, **fields: Any) -> Operator[Any]:
    kind = operator_type(op)
    return kind(
        kind.params_type.model_validate({"input": "rows", "model": "base", **fields}), StepContext(constitution=HARMLESS)
    )


def run(operator: Any, llm: RuleLLM) -> Any:
    row = {name: ROW.get(name) for name in (*operator.reads(), "uid")}
    return asyncio.run(operator.row(row, llm))


def saying(*answers: str) -> RuleLLM:
    """Return a model that gives these answers, one after the other, and the last one from there on."""
    left = list(answers)
    return RuleLLM(lambda _: left.pop(0) if len(left) > 1 else left[0])


def final(asked: Sequence[Asked], op: str) -> list[Asked]:
    """Return the questions for what the step makes; a revision's critique comes before them."""
    return list(asked[1:] if op == "revise" else asked)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_flawed_answer_is_drawn_again_with_a_seed_and_temperature_of_its_own(op: str) -> None:
    first = ["A critique."] if op == "revise" else []
    llm = saying(*first, CIRCLES, "", GOOD)
    out = run(made(op, **ACCEPT), llm)
    assert out["draws"] == 3
    assert GOOD in (out.get("response"), out.get("critique"), out.get("revision"))
    asked = final(llm.asked, op)
    assert [a.sample - asked[0].sample for a in asked] == [0, FURTHER, 2 * FURTHER]
    assert [a.sampling.temperature for a in asked] == [0, 0.7, 0.7]
    assert len({str(a.prompt) for a in asked}) == 1


@pytest.mark.parametrize("op", OPERATORS)
def test_what_fails_to_the_last_is_left_out_or_kept_by_name(op: str) -> None:
    llm = saying("A critique.", CIRCLES) if op == "revise" else saying(CIRCLES)
    with pytest.raises(RowDropped, match="not accepted: circles"):
        run(made(op, tries=2, **ACCEPT), llm)
    assert len(final(llm.asked, op)) == 2
    kept = run(made(op, tries=2, on_reject="keep", **ACCEPT), saying("A critique.", CIRCLES) if op == "revise" else llm)
    assert (kept["draws"], kept["unaccepted"]) == (2, "circles")


def test_each_sample_is_drawn_again_by_itself() -> None:
    llm = RuleLLM(lambda asked: CIRCLES if asked.sample == 1 else f"{GOOD} {asked.sample}")
    generate = made("generate", samples=3, sampling={"temperature": 1}, accept=["circles"])
    out = run(generate, llm)
    assert out["responses"] == [f"{GOOD} 0", f"{GOOD} {1 + FURTHER}", f"{GOOD} 2"]
    assert out["draws"] == 4
    figures: Any = generate
    assert figures.metrics([out], {}) == {
        "truncated": 0.0,
        "mean_chars": len(out["response"]),
        "draws": 4,
        "redrawn": 1.0,
    }


def test_every_round_of_a_revision_has_its_own_draws() -> None:
    llm = saying("c1", CIRCLES, GOOD, "c2", GOOD.upper())
    rows = run(made("revise", rounds=2, rows="each", **ACCEPT), llm)
    assert [row["draws"] for row in rows] == [2, 1]
    assert rows[1]["revisions"] == [GOOD, GOOD.upper()]


@given(
    op=st.sampled_from(OPERATORS), words=st.lists(st.sampled_from(["yes", "no", "house", "of", "a"]), min_size=1, max_size=12)
)
def test_nothing_changes_where_nothing_fails(op: str, words: list[str]) -> None:
    def answer(asked: Asked) -> str:
        return f"{' '.join(words)} {asked.sample}"

    plain, checked = RuleLLM(answer), RuleLLM(answer)
    before, after = run(made(op), plain), run(made(op, on_reject="keep", tries=5, **ACCEPT), checked)
    if after["unaccepted"] is None and after["draws"] == 1:
        assert checked.asked == plain.asked
        assert {**before, "draws": 1, "unaccepted": None} == after


@pytest.mark.parametrize("op", OPERATORS)
def test_unknown_checks_and_draws_that_cant_differ_are_refused(op: str) -> None:
    (unknown,) = made(op, accept=["circels"], sampling={"temperature": 1}).check()
    assert "no check `circels`" in unknown.message
    assert "circles" in unknown.hint
    (greedy,) = made(op, accept=["circles"]).check()
    assert "greedy" in greedy.message
    assert not list(made(op, accept=["circles"], tries=1).check())
    assert not list(made(op, **ACCEPT).check())


@pytest.mark.parametrize("op", OPERATORS)
def test_all_draws_are_calls_so_that_each_is_kept(op: str) -> None:
    operator: Any = made(op, tries=4, **ACCEPT)
    assert operator.calls() == (5 if op == "revise" else 4)
    assert set(operator.writes()) >= {"draws"}
    plain: Any = made(op)
    assert "draws" not in plain.writes()
