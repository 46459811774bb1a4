"""Votes on pairs: both orders under one principle, thoughts and their clamp, answers that can't be read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from caiflow.operators.judging.options import Judging
from caiflow.operators.judging.pairwise import PairJudge, Verdict, Vote
from caiflow.operators.judging.phrases import parse_choice
from caiflow.operators.judging.prompts import JUDGE_PREFILL, judge_messages
from caiflow.operators.measures.probability import clamped
from support.row_llm import Asked, RuleLLM
from support.small_constitution import small_constitution

LAW = small_constitution()


def judge(instruction: str = "", **fields: Any) -> PairJudge:
    return PairJudge(Judging.model_validate(fields), LAW, 3, instruction)


def shown(asked: Asked) -> tuple[str, str]:
    """Return the options of the question in the order shown."""
    a, b = asked.last.split("Options:\n(A) ")[1].split("\n(B) ")
    return a, b


def leaning(worth: Mapping[str, float], towards_a: float = 0.0) -> RuleLLM:
    """A judge whose log-odds are the difference in worth, plus a liking for option A."""

    def choose(asked: Asked) -> dict[str, float]:
        a, b = shown(asked)
        return {"A": worth[a] + towards_a, "B": worth[b]}

    def say(asked: Asked) -> str:
        if not asked.prefill.endswith("("):
            return "One of them is kinder."
        given = choose(asked)
        return "A)." if given["A"] > given["B"] else "B)."

    return RuleLLM(say, choose)


def verdict(how: PairJudge, llm: RuleLLM, pair: tuple[str, str] = ("good", "bad"), uid: str = "r") -> Verdict:
    return asyncio.run(how.verdict(uid, "why?", pair, llm))


def test_both_orders_are_asked_under_the_same_principle() -> None:
    llm = leaning({"good": log(3), "bad": 0.0})
    found = verdict(judge(), llm)
    (principle,) = LAW.draw(3, "r", "judge")
    assert [a.prompt for a in llm.asked] == [
        judge_messages("why?", principle.text("judge"), ("good", "bad")),
        judge_messages("why?", principle.text("judge"), ("bad", "good")),
    ]
    assert {(a.prefill, a.choices) for a in llm.asked} == {(JUDGE_PREFILL, ("A", "B"))}
    assert found.votes == (
        Vote(principle.id, False, pytest.approx(0.75), True, (log(3), 0.0)),
        Vote(principle.id, True, pytest.approx(0.25), True, (0.0, log(3))),
    )
    assert found.p_first == pytest.approx(0.75)


def test_order_averaging_by_hand() -> None:
    # shown first it gets 0.8, shown second the other gets 0.6 of its 1: (0.8 + 0.4) / 2
    votes = (Vote("p", False, 0.8), Vote("p", True, 0.6))
    assert Verdict(votes).p_first == pytest.approx(0.6)


@given(st.floats(-8, 8), st.floats(-8, 8), st.floats(-8, 8), st.sampled_from(["logprobs", "text"]))
def test_swapping_the_pair_mirrors_the_verdict(good: float, bad: float, towards_a: float, method: str) -> None:
    llm = leaning({"good": good, "bad": bad}, towards_a)
    how = judge(method=method, principles=2)
    one, other = verdict(how, llm), verdict(how, llm, ("bad", "good"))
    assert one.p_first == pytest.approx(1 - other.p_first, abs=1e-9)


@given(st.floats(0.01, 30))
def test_a_judge_that_only_looks_at_the_position_decides_nothing(towards_a: float) -> None:
    llm = leaning({"good": 0.0, "bad": 0.0}, towards_a)
    assert verdict(judge(), llm).p_first == pytest.approx(0.5)
    assert verdict(judge(method="text"), llm).p_first == 0.5


def test_one_order_only_is_drawn_so_that_a_liking_for_a_position_favours_neither_side() -> None:
    llm = leaning({"good": 0.0, "bad": 0.0}, log(3))
    found = [verdict(judge(swap=False), llm, uid=f"row {n}") for n in range(200)]
    assert len(llm.asked) == len(found)
    assert {round(one.p_first, 2) for one in found} == {0.25, 0.75}
    assert sum(one.p_first for one in found) / len(found) == pytest.approx(0.5, abs=0.06)
    (vote,) = found[0].votes
    assert vote.p_a == pytest.approx(0.75)


def test_several_principles_are_judged_one_by_one_and_averaged() -> None:
    llm = leaning({"good": 1.0, "bad": 0.0})
    found = verdict(judge(principles=3), llm)
    drawn = [p.id for p in LAW.draw(3, "r", "judge", 3)]
    assert [v.instruction for v in found.votes] == [name for name in drawn for _ in range(2)]
    assert len(set(drawn)) == 3
    assert [v.swapped for v in found.votes] == [False, True] * 3


def test_the_whole_constitution_at_once() -> None:
    llm = leaning({"good": 1.0, "bad": 0.0})
    found = verdict(judge(principles="all"), llm)
    assert {v.instruction for v in found.votes} == {"all"}
    assert all(p.text("judge") in llm.asked[0].last for p in LAW.principles)


def test_a_given_instruction_replaces_the_constitution() -> None:
    llm = leaning({"good": 1.0, "bad": 0.0})
    verdict(judge("Which is shorter?", principles=3), llm)
    assert len(llm.asked) == 2
    assert "\n\nWhich is shorter?\n\n" in llm.asked[0].last


def test_equal_answers_arent_asked_about() -> None:
    llm = leaning({})
    assert verdict(judge(), llm, ("same", "same")) == Verdict(())
    assert llm.asked == []
    assert Verdict(()).p_first == 0.5


def test_examples_have_principles_of_their_own() -> None:
    llm = leaning({"good": 1.0, "bad": 0.0})
    verdict(judge(few_shot=2), llm)
    questions = [m["content"] for m in llm.asked[0].prompt if m["role"] == "user"]
    assert "Which is better by p2?" in questions[0]
    assert "Which is better by p" in questions[1]
    assert [m["content"] for m in llm.asked[0].prompt if m["role"] == "assistant"] == [
        "The answer is (A).",
        "The answer is (B).",
    ]


def test_unreadable_votes_are_counted_and_undecided() -> None:
    found = verdict(judge(method="text"), RuleLLM(lambda asked: "A) and (B)" if shown(asked)[0] == "good" else "B)"))
    assert [(v.parsed, v.p_a) for v in found.votes] == [(False, 0.5), (True, 0.0)]
    assert found.unparsable == 1
    assert found.p_first == 0.75


def test_thoughts_come_first_and_are_clamped() -> None:
    llm = leaning({"good": 9.0, "bad": 0.0})
    found = verdict(judge(chain_of_thought={}), llm)
    assert [a.kind for a in llm.asked].count("chat") == 2
    thinking, asking = llm.asked[0], llm.asked[-1]
    assert thinking.prefill == "Let me think it through:"
    assert "So the answer is" in thinking.sampling.stop
    assert asking.prefill == "Let me think it through: One of them is kinder. So the answer is ("
    assert found.p_first == pytest.approx(0.6)
    assert {v.thought for v in found.votes} == {"One of them is kinder."}


def test_each_thought_is_clamped_before_the_average() -> None:
    # thoughts 0..3 of the first order say A, A, A, B: 3 * 0.6 + 0.4 over 4; the second order says the same the other way round
    def choose(asked: Asked) -> dict[str, float]:
        doubtful = "3" in asked.prefill
        a_wins = (shown(asked)[0] == "good") != doubtful
        return {"A": 20.0 * a_wins, "B": 20.0 * (not a_wins)}

    llm = RuleLLM(lambda asked: f"thought {asked.sample % 4}", choose)
    how = judge(chain_of_thought={"samples": 4})
    found = verdict(how, llm)
    assert found.p_first == pytest.approx(0.55)
    assert how.calls() == len(llm.asked) == 16
    assert sorted(a.sample for a in llm.asked if a.kind == "chat") == list(range(8))


def test_thoughts_without_clamp_keep_their_certainty() -> None:
    llm = leaning({"good": 40.0, "bad": 0.0})
    assert verdict(judge(chain_of_thought={"clamp": None}), llm).p_first == pytest.approx(1.0)


def test_only_examples_with_a_thought_are_shown_to_a_thinking_judge() -> None:
    (problem,) = judge(few_shot=2, chain_of_thought={}).problems()
    assert problem[0] == ("few_shot",)
    assert "1 worked judgements with a thought, got 2" in problem[1]
    assert list(judge(few_shot=1, chain_of_thought={}).problems()) == []


def test_problems_without_constitution_or_principles() -> None:
    assert len(list(PairJudge(Judging(), None, 0).problems())) == 1
    assert list(PairJudge(Judging(), None, 0, "Which?").problems()) == []
    assert [path for path, *_ in judge(principles=5).problems()] == [("principles",)]


@given(st.floats(0, 1), st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)))
def test_clamping_is_symmetric(p: float, bounds: tuple[float, float]) -> None:
    low, high = bounds
    assert low <= clamped(p, bounds) <= high
    assert clamped(1 - p, (1 - high, 1 - low)) == pytest.approx(1 - clamped(p, bounds))


def test_identity_names_every_text() -> None:
    edited = PairJudge(Judging(few_shot=2), small_constitution(p1="Which is nicer?"), 3)
    drawn = {f"row{i}" for i in range(60) if LAW.draw(3, f"row{i}", "judge")[0].id == "p1"}
    plain, changed = judge(), PairJudge(Judging(), small_constitution(p1="Which is nicer?"), 3)
    assert {f"row{i}" for i in range(60) if plain.identity(f"row{i}") != changed.identity(f"row{i}")} == drawn
    assert edited.identity("r") != judge(few_shot=1).identity("r")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A).", "A"),
        (" B)", "B"),
        ("(A) because it is kind, unlike (B)", None),
        ("A", "A"),
        ("B.", "B"),
        ("The answer is (B).", "B"),
        ("I think the answer is: A", "A"),
        ("A) and (B)", None),
        ("(A) or (B)", None),
        ("A/B)", None),
        ("Both (A) and (B) are fine", None),
        ("C)", None),
        ("A good answer would be neither", None),
        ("", None),
        ("a)", None),
    ],
)
def test_reading_an_answer(text: str, letter: str | None) -> None:
    assert parse_choice(text) == letter


@pytest.mark.parametrize(
    "wrong",
    [
        {"principles": 0},
        {"principles": "some"},
        {"method": "logits"},
        {"chain_of_thought": {"clamp": [0.6, 0.4]}},
        {"chain_of_thought": {"samples": 3, "sampling": {"temperature": 0}}},
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Judging.model_validate(wrong)
