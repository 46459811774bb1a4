"""Votes on lists: every answer at every place under one principle, shares averaged by answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from math import exp, log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.operators.judging.listwise import ListJudge, ListVote, Ranking, rotations
from caiflow.operators.judging.options import Judging, Reply
from caiflow.operators.measures.probability import bounded
from support.row_llm import Asked, RuleLLM
from support.small_constitution import small_constitution

LAW = small_constitution()
WORTH = {"a": 0.0, "b": log(2), "c": log(4), "d": log(3)}


def judge(**fields: Any) -> ListJudge:
    return ListJudge(Judging.model_validate(fields), LAW, 3)


def options(asked: Asked) -> list[str]:
    """Return the options of the question in the order shown."""
    lines = asked.last.split("Options:\n")[1].splitlines()
    return [line[4:] for line in lines]


def leaning(worth: Mapping[str, float], places: Mapping[str, float] | None = None) -> RuleLLM:
    """A judge whose log-probabilities are the worth, plus a liking for some letters."""

    def choose(asked: Asked) -> dict[str, float]:
        liking = places or {}
        return {
            letter: worth[text] + liking.get(letter, 0.0) for letter, text in zip("ABCDEFGHI", options(asked), strict=False)
        }

    def say(asked: Asked) -> str:
        if not asked.prefill.endswith("("):
            return "One of them is kinder."
        given = choose(asked)
        return f"{max(given, key=given.__getitem__)})."

    return RuleLLM(say, choose)


def ranking(how: ListJudge, llm: RuleLLM, *answers: str) -> Ranking:
    return asyncio.run(how.ranking("r", "why?", dict(enumerate(answers)), llm))


def test_each_answer_stands_once_at_each_place_under_one_principle() -> None:
    llm = leaning(WORTH)
    found = ranking(judge(), llm, *"abcd")
    assert [options(asked) for asked in llm.asked] == [list("abcd"), list("bcda"), list("cdab"), list("dabc")]
    assert {asked.choices for asked in llm.asked} == {("A", "B", "C", "D")}
    (principle,) = LAW.draw(3, "r", "judge")
    assert {vote.instruction for vote in found.votes} == {principle.id}
    assert all(principle.text("judge") in asked.last for asked in llm.asked)


@given(st.integers(2, 9))
def test_rotations_are_a_latin_square(n: int) -> None:
    orders = rotations(tuple(range(n)))
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert all(len(set(place)) == n for place in zip(*orders, strict=True))


def test_shares_are_averaged_by_answer() -> None:
    found = ranking(judge(), leaning(WORTH), *"abcd")
    assert found.scores() == pytest.approx({0: 0.1, 1: 0.2, 2: 0.4, 3: 0.3})
    assert found.votes[1].shown == (1, 2, 3, 0)
    assert found.votes[1].reply.shares == pytest.approx((0.2, 0.4, 0.3, 0.1))
    assert found.votes[1].reply.logprobs == (log(2), log(4), log(3), 0.0)


def test_averaging_by_hand() -> None:
    # shown first, second, third it gets 0.5, 0.2 and 0.2
    votes = (
        ListVote("p", (0, 1, 2), Reply((0.5, 0.3, 0.2))),
        ListVote("p", (1, 2, 0), Reply((0.6, 0.2, 0.2))),
        ListVote("p", (2, 0, 1), Reply((0.4, 0.2, 0.4))),
    )
    assert Ranking(votes).scores() == pytest.approx({0: 0.9 / 3, 1: 1.3 / 3, 2: 0.8 / 3})


@given(st.dictionaries(st.sampled_from("ABCD"), st.floats(-20, 20)), st.sampled_from(["logprobs", "text"]))
def test_a_judge_that_only_looks_at_the_place_decides_nothing(places: dict[str, float], method: str) -> None:
    llm = leaning(dict.fromkeys("abcd", 0.0), places)
    assert list(ranking(judge(method=method), llm, *"abcd").scores().values()) == pytest.approx([0.25] * 4)


@given(st.permutations("abcd"), st.sampled_from(["logprobs", "text"]))
def test_the_order_of_the_candidates_decides_nothing_without_a_liking(order: list[str], method: str) -> None:
    found = ranking(judge(method=method), leaning(WORTH), *order).scores()
    plain = ranking(judge(method=method), leaning(WORTH), *"abcd").scores()
    assert {order[i]: share for i, share in found.items()} == pytest.approx({"abcd"[i]: s for i, s in plain.items()})


def test_two_answers_are_a_pair_in_both_orders() -> None:
    found = ranking(judge(), leaning({"good": log(3), "bad": 0.0}, {"A": 1.0}), "good", "bad")
    first, second = 3 * exp(1) / (3 * exp(1) + 1), 3 / (exp(1) + 3)
    assert found.scores()[0] == pytest.approx((first + second) / 2)


def test_text_votes_give_a_point_for_each_order_and_unreadable_ones_share_alike() -> None:
    odd = RuleLLM(lambda asked: "hard to say" if options(asked)[0] == "c" else f"{'ABC'[options(asked).index('b')]})")
    found = ranking(judge(method="text"), odd, *"abc")
    assert found.unparsable == 1
    assert found.scores() == pytest.approx({0: 1 / 9, 1: 7 / 9, 2: 1 / 9})


def test_a_letter_that_wasnt_offered_is_unreadable() -> None:
    assert ranking(judge(method="text"), RuleLLM(lambda asked: "D)"), *"abc").unparsable == 3


def test_one_order_only() -> None:
    llm = leaning(WORTH)
    found = ranking(judge(swap=False), llm, *"abc")
    assert found.scores() == pytest.approx({0: 1 / 7, 1: 2 / 7, 2: 4 / 7})
    assert len(llm.asked) == 1
    (vote,) = found.votes
    assert vote.shown == judge(swap=False).drawn_order("r", dict(enumerate("abc"))) != (0, 1, 2)


def test_several_principles_each_in_every_order() -> None:
    llm = leaning(WORTH)
    found = ranking(judge(principles=2), llm, *"abc")
    assert Counter(v.instruction for v in found.votes) == {p.id: 3 for p in LAW.draw(3, "r", "judge", 2)}
    assert judge(principles=2).calls(3) == len(llm.asked) == 6


def test_thoughts_are_bounded_and_averaged() -> None:
    llm = leaning({"a": 0.0, "b": 9.0, "c": 0.0, "d": 0.0})
    found = ranking(judge(chain_of_thought={"samples": 2}), llm, *"abcd")
    assert found.scores() == pytest.approx({0: 2 / 9, 1: 3 / 9, 2: 2 / 9, 3: 2 / 9}, abs=1e-3)
    assert found.votes[0].thought == "One of them is kinder.\n\nOne of them is kinder."
    assert judge(chain_of_thought={"samples": 2}).calls(4) == len(llm.asked) == 16


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9).filter(lambda s: sum(s) > 0.01))
def test_bounds_hold_for_any_two_options(weights: list[float]) -> None:
    found = bounded(tuple(w / sum(weights) for w in weights), (0.4, 0.6))
    assert sum(found) == pytest.approx(1)
    assert all(a / (a + b) <= 0.6 + 1e-9 for a in found for b in found)


def test_equal_answers_arent_asked_about_and_too_many_are_refused() -> None:
    llm = leaning({})
    assert ranking(judge(), llm, "a") == Ranking(())
    with pytest.raises(ValueError, match="up to 9 different answers, got 10; judge them in pairs"):
        ranking(judge(), llm, *"abcdefghij")
    assert llm.asked == []
