"""`judge`: preference pairs with their labels and evidence, what is left out and why, and how the judge behaved."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from math import log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.operator import RowDropped, StepContext
from caiflow.engine.rows.columns import Columns, ColumnType, Row
from caiflow.operators.judge import Judge
from caiflow.operators.judging.pairwise import Verdict
from caiflow.operators.judging.params import JudgeParams
from caiflow.operators.judging.prompts import user
from caiflow.operators.judging.verdicts import STUCK, TIE_FIRST, TIE_SECOND, UNPARSABLE, Pair, best_against_worst
from support.row_llm import Asked, RuleLLM
from support.small_constitution import small_constitution

LAW = small_constitution()


def step(law: Any = LAW, **fields: Any) -> Judge:
    params = JudgeParams.model_validate({"input": "pairs", "model": "sl", **fields})
    return Judge(params, StepContext(seed=3, constitution=law))


def leaning(worth: Mapping[str, float], towards_a: float = 0.0) -> RuleLLM:
    """A judge whose log-odds are the difference in worth, plus a liking for option A."""

    def choose(asked: Asked) -> dict[str, float]:
        a, b = asked.last.split("Options:\n(A) ")[1].split("\n(B) ")
        return {"A": worth[a] + towards_a, "B": worth[b]}

    def say(asked: Asked) -> str:
        found = choose(asked)
        return "A)." if found["A"] > found["B"] else "B)."

    return RuleLLM(say, choose)


def run(operator: Judge, llm: RuleLLM, *responses: str, **columns: Any) -> list[Row]:
    row = {"uid": "r", "prompt": [user("why?")], "responses": list(responses) or None, **columns}
    found = asyncio.run(operator.row(row, llm))
    return found if isinstance(found, list) else [found]


def test_a_soft_label_with_its_evidence() -> None:
    operator, llm = step(), leaning({"bad": 0.0, "good": log(4)})
    (found,) = run(operator, llm, "bad", "good")
    principle = LAW.draw(3, "r", "judge")[0].id
    assert found == {
        "principle": principle,
        "principles": [principle],
        "outcome": "decided",
        "rejected": "bad",
        "chosen": "good",
        "p_chosen": pytest.approx(0.8),
        "margin": pytest.approx(0.6),
        "chosen_index": 1,
        "rejected_index": 0,
        "scores": pytest.approx([0.2, 0.8]),
        "p_a": pytest.approx([0.2, 0.8]),
        "logprob_a": [0.0, log(4)],
        "logprob_b": [log(4), 0.0],
        "thoughts": None,
        "unparsable_votes": 0,
    }
    assert set(found) == set(operator.writes())
    assert operator.calls() == 2


@pytest.mark.parametrize("responses", [["good", "good"], ["good", "bad"], ["good", "", "bad"], ["good", "bad", "bad", "good"]])
def test_the_calls_of_a_row_are_counted_before_they_are_made(responses: list[str]) -> None:
    operator, llm = step(ties="keep"), leaning({"good": 1.0, "bad": 0.0})
    run(operator, llm, *responses)
    assert operator.calls_for({"uid": "r", "responses": responses}) == len(llm.asked)


def test_the_calls_for_answers_still_to_come_are_the_most_there_can_be() -> None:
    for listwise in (False, True):
        operator = step(listwise=listwise)
        assert operator.calls_for({"responses": None}, {"responses"}) == operator.calls()
        assert operator.calls_for({"responses": ["good", "good"]}) == 0
        assert operator.calls_for({"responses": ["good", "bad"]}) == operator.calls()


def test_a_hard_label_keeps_the_margin() -> None:
    (found,) = run(step(labels="hard"), leaning({"good": log(4), "bad": 0.0}), "good", "bad")
    assert (found["chosen"], found["p_chosen"]) == ("good", 1.0)
    assert found["margin"] == pytest.approx(0.6)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_the_order_of_the_candidates_doesnt_matter(difference: float, towards_a: float) -> None:
    operator, llm = step(ties="keep"), leaning({"x": difference, "y": 0.0}, towards_a)
    (one,), (other,) = run(operator, llm, "x", "y"), run(operator, llm, "y", "x")
    assert one["p_chosen"] == pytest.approx(other["p_chosen"])
    assert one["outcome"] == other["outcome"]
    if one["outcome"] == "decided":
        assert one["chosen"] == other["chosen"]


def test_text_votes_score_a_point_for_each_order() -> None:
    (found,) = run(step(method="text"), leaning({"good": 1.0, "bad": 0.0}), "bad", "good")
    assert (found["chosen"], found["p_chosen"], found["p_a"]) == ("good", 1.0, [0.0, 1.0])
    assert found["logprob_a"] is None


@pytest.mark.parametrize(("towards_a", "reason"), [(9.0, TIE_FIRST), (-9.0, TIE_SECOND)])
def test_a_judge_that_sticks_to_a_position_is_a_tie(towards_a: float, reason: str) -> None:
    llm = leaning({"good": 1.0, "bad": 0.0}, towards_a)
    with pytest.raises(RowDropped, match=reason):
        run(step(method="text"), llm, "good", "bad")
    (kept,) = run(step(method="text", ties="keep"), llm, "good", "bad")
    assert (kept["outcome"], kept["p_chosen"], kept["margin"], kept["chosen"]) == ("tie", 0.5, 0.0, "good")


def test_kept_ties_stay_undecided_under_hard_labels() -> None:
    llm = leaning({"good": 1.0, "bad": 0.0}, 9.0)
    (kept,) = run(step(method="text", ties="keep", labels="hard"), llm, "good", "bad")
    assert kept["p_chosen"] == 0.5


def test_close_calls_within_the_margin_are_ties() -> None:
    llm = leaning({"good": 0.1, "bad": 0.0})
    assert run(step(), llm, "good", "bad")[0]["outcome"] == "decided"
    with pytest.raises(RowDropped, match="tie"):
        run(step(tie_margin=0.1), llm, "good", "bad")


def test_equal_answers_are_a_tie_without_a_question() -> None:
    llm = leaning({})
    with pytest.raises(RowDropped, match="tie: equal answers"):
        run(step(), llm, "same", "same")
    assert llm.asked == []


def test_unreadable_votes() -> None:
    half = RuleLLM(lambda asked: "A)" if asked.last.endswith("(B) bad") else "hard to say")
    with pytest.raises(RowDropped, match=UNPARSABLE):
        run(step(method="text"), half, "good", "bad")
    (kept,) = run(step(method="text", unparsable="tie"), half, "good", "bad")
    assert (kept["chosen"], kept["p_chosen"], kept["unparsable_votes"]) == ("good", 0.75, 1)


def test_named_columns_as_candidates() -> None:
    operator = step(candidates=["response", "revision"])
    (found,) = run(operator, leaning({"so": 0.0, "gently": 1.0}), response="so", revision="gently")
    assert found["chosen"] == "gently"
    assert operator.needs() == {"pairs": ["prompt", "response", "revision"]}
    assert operator.reads() == ["prompt", "response", "revision"]


def test_the_best_meets_the_worst_of_several() -> None:
    llm = leaning({"a": 1.0, "b": 3.0, "c": -2.0, "d": 0.0})
    (found,) = run(step(), llm, "a", "b", "c", "d")
    assert (found["chosen"], found["rejected"]) == ("b", "c")
    assert (found["chosen_index"], found["rejected_index"]) == (1, 2)
    assert found["p_chosen"] == pytest.approx(found["scores"][1] / (found["scores"][1] + found["scores"][2]))
    assert len(llm.asked) == 12
    assert len(found["p_a"]) == 2


def test_of_equal_candidates_none_is_preferred_for_its_place() -> None:
    """Two of four are best, and as often the one as the other; a judge that writes its answer gives them the same score."""
    operator, llm = step(method="text"), leaning({"fine": 1.0, "fair": 1.0, "poor": 0.0, "bare": 0.0})
    found = [run(operator, llm, "fine", "fair", "poor", "bare", uid=f"r{number}")[0] for number in range(400)]
    places = Counter((row["chosen_index"], row["rejected_index"]) for row in found)
    assert set(places) == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert min(places.values()) > 60
    assert operator.identity() != step(method="logprobs").identity() == step(method="text", pairs="all").identity()


def test_all_pairs_as_rows_without_the_ties() -> None:
    llm = leaning({"a": 1.0, "b": 3.0, "c": 1.0})
    found = run(step(pairs="all"), llm, "a", "b", "c")
    assert [(r["chosen"], r["rejected"]) for r in found] == [("b", "a"), ("b", "c")]
    assert len(run(step(pairs="all", ties="keep"), llm, "a", "b", "c")) == 3


def test_empty_answers_are_no_candidates() -> None:
    llm = leaning({"a": 0.0, "b": 1.0})
    (found,) = run(step(), llm, "a", " ", "b")
    assert (found["chosen_index"], found["rejected_index"], found["scores"][1]) == (2, 0, None)
    with pytest.raises(RowDropped, match="fewer than two answers"):
        run(step(), llm, "a", "")


def test_thoughts_are_kept() -> None:
    llm = leaning({"good": 9.0, "bad": 0.0})
    (found,) = run(step(chain_of_thought={"samples": 2}), llm, "good", "bad")
    assert found["p_chosen"] == pytest.approx(0.6)
    assert len(found["thoughts"]) == 2


def test_several_principles_are_named() -> None:
    (found,) = run(step(principles=2), leaning({"good": 1.0, "bad": 0.0}), "good", "bad")
    assert found["principles"] == [p.id for p in LAW.draw(3, "r", "judge", 2)]
    assert found["principle"] == found["principles"][0]
    assert run(step(principles="all"), leaning({"good": 1.0, "bad": 0.0}), "good", "bad")[0]["principle"] == "all"


def test_an_edited_principle_concerns_only_the_rows_that_drew_it() -> None:
    uids = [f"row{i}" for i in range(60)]
    before, after = step(), step(small_constitution(p3="Which is nicer?"))
    changed = {uid for uid in uids if before.row_identity({"uid": uid}) != after.row_identity({"uid": uid})}
    assert changed == {uid for uid in uids if LAW.draw(3, uid, "judge")[0].id == "p3"}


def test_figures_of_an_unbiased_judge() -> None:
    operator, llm = step(), leaning({"good": log(4), "bad": 0.0})
    rows = run(operator, llm, "good", "bad") + run(operator, llm, "bad", "good")
    found = operator.metrics(rows, {"tie": 1, UNPARSABLE: 1, "fewer than two answers": 5})
    entropy = -(0.8 * log(0.8) + 0.2 * log(0.2)) / log(2)
    assert found == {
        "ties": 0.25,
        "unparsable": 0.25,
        "entropy_bits": pytest.approx(entropy),
        "position_bias": pytest.approx(0),
        "order_flips": 0.0,
    }


def test_figures_count_the_ties_that_position_made() -> None:
    operator = step(method="text")
    rows = run(operator, leaning({"good": 1.0, "bad": 0.0}), "good", "bad")
    found = operator.metrics(rows, {TIE_FIRST: 2, TIE_SECOND: 1})
    assert found["ties"] == 0.75
    assert found["position_bias"] == pytest.approx((0.5 + 1 + 1 + 0) / 4 - 0.5)
    assert found["order_flips"] == 0.75


def test_clamped_thoughts_that_stick_to_a_position_are_a_tie_of_that_kind() -> None:
    llm = leaning({"good": 1.0, "bad": 0.0}, 9.0)
    operator = step(chain_of_thought={})
    with pytest.raises(RowDropped, match=TIE_FIRST):
        run(operator, llm, "good", "bad")
    found = operator.metrics([], {TIE_FIRST: 3, TIE_SECOND: 1})
    assert found["position_bias"] == pytest.approx(0.05)
    assert (found["order_flips"], found["ties"]) == (1.0, 1.0)


def test_one_order_tells_nothing_about_position() -> None:
    operator = step(swap=False)
    rows = run(operator, leaning({"good": 1.0, "bad": 0.0}), "good", "bad")
    assert set(operator.metrics(rows, {})) == {"ties", "unparsable", "entropy_bits"}


def test_figures_of_nothing() -> None:
    assert step().metrics([], {}) == {}
    assert step().metrics([], {UNPARSABLE: 2})["unparsable"] == 1.0


# --------------------------------------------------------------------------------------------------- lists


def liking(worth: Mapping[str, float], places: Mapping[str, float] | None = None) -> RuleLLM:
    """A judge of lists whose log-probabilities are the worth, plus a liking for some letters."""

    def choose(asked: Asked) -> dict[str, float]:
        texts = [line[4:] for line in asked.last.split("Options:\n")[1].splitlines()]
        return {letter: worth[text] + (places or {}).get(letter, 0.0) for letter, text in zip("ABCDEFGHI", texts, strict=False)}

    def say(asked: Asked) -> str:
        found = choose(asked)
        return f"{max(found, key=found.__getitem__)})"

    return RuleLLM(say, choose)


def test_a_list_gives_the_best_against_the_worst_with_its_evidence() -> None:
    operator, llm = step(listwise=True), liking({"a": 0.0, "b": log(2), "c": log(4), "d": log(3)})
    (found,) = run(operator, llm, "a", "b", "c", "d")
    assert (found["chosen"], found["rejected"]) == ("c", "a")
    assert found["p_chosen"] == pytest.approx(0.4 / 0.5)
    assert found["scores"] == pytest.approx([0.1, 0.2, 0.4, 0.3])
    assert found["p_a"] == pytest.approx([0.1, 0.2, 0.4, 0.3])
    votes = json.loads(json.dumps(found["votes"]))
    assert [vote["shown"] for vote in votes] == [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]
    assert votes[3]["shares"] == pytest.approx([0.3, 0.1, 0.2, 0.4])
    assert votes[3]["logprobs"] == pytest.approx([log(3), 0.0, log(2), log(4)])
    assert {vote["principle"] for vote in votes} == {found["principle"]}
    assert set(found) == set(operator.writes())
    assert len(llm.asked) == 4
    assert step(listwise=True, candidates=["a", "b", "c", "d"]).calls() == 4


def test_a_list_as_all_pairs() -> None:
    found = run(step(listwise=True, pairs="all"), liking({"a": 0.0, "b": log(2), "c": log(4)}), "a", "b", "c")
    assert [(r["chosen"], r["rejected"]) for r in found] == [("b", "a"), ("c", "a"), ("c", "b")]
    assert [r["p_chosen"] for r in found] == pytest.approx([2 / 3, 4 / 5, 2 / 3])


def test_equal_answers_stand_in_a_list_once() -> None:
    llm = liking({"a": 0.0, "b": log(3)})
    (found,) = run(step(listwise=True), llm, "a", "b", "a", " ")
    assert (found["chosen"], found["p_chosen"], found["scores"]) == (
        "b",
        pytest.approx(0.75),
        pytest.approx([0.25, 0.75, 0.25, None]),
    )
    assert len(llm.asked) == 2
    with pytest.raises(RowDropped, match="tie: equal answers"):
        run(step(listwise=True), llm, "a", "a", "a")
    kept = run(step(listwise=True, pairs="all"), llm, "a", "b", "a")
    assert [(r["chosen_index"], r["rejected_index"]) for r in kept] == [(1, 0), (1, 2)]


def test_of_equally_bad_answers_a_drawn_one_is_the_worst() -> None:
    operator, llm = step(listwise=True, method="text"), liking({"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0})
    worst = [run(operator, llm, *"abcd", uid=f"row{i}")[0]["rejected"] for i in range(60)]
    assert set(worst) == {"a", "c", "d"}
    assert worst == [run(operator, llm, *"abcd", uid=f"row{i}")[0]["rejected"] for i in range(60)]


def test_a_list_judge_that_sticks_to_a_place_is_a_tie_that_says_so() -> None:
    operator, llm = step(listwise=True, method="text"), liking(dict.fromkeys("abcd", 0.0), {"C": 9.0})
    with pytest.raises(RowDropped, match="tie: option C of 4 in every order") as dropped:
        run(operator, llm, *"abcd")
    rows = run(operator, liking({"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0}), *"abcd")
    found = operator.metrics(rows, {str(dropped.value): 1})
    assert found["position_excess"] == pytest.approx([-1 / 8, -1 / 8, 3 / 8, -1 / 8])
    assert (found["position_bias"], found["order_flips"], found["ties"]) == (pytest.approx(-1 / 8), 0.5, 0.5)


def test_an_unreadable_vote_on_a_list() -> None:
    llm = RuleLLM(lambda asked: "hard to say" if asked.last.endswith("(C) a") else f"{'ABC'[asked.last.count('(A) a') - 1]})")
    with pytest.raises(RowDropped, match=UNPARSABLE):
        run(step(listwise=True, method="text"), llm, *"abc")
    (kept,) = run(step(listwise=True, method="text", unparsable="tie"), llm, *"abc")
    assert kept["unparsable_votes"] == 1


def test_figures_of_lists_tell_what_each_place_gets() -> None:
    operator, llm = step(listwise=True, ties="keep"), liking(dict.fromkeys("abc", 0.0), {"A": log(2)})
    rows = run(operator, llm, *"abc")
    found = operator.metrics(rows, {})
    assert found == operator.metrics([{**row, "votes": json.dumps(row["votes"])} for row in rows], {})
    assert found["position_excess"] == pytest.approx([1 / 6, -1 / 12, -1 / 12])
    assert (found["position_bias"], found["order_flips"]) == (pytest.approx(1 / 6), 1.0)
    assert (found["ties"], found["entropy_bits"]) == (1.0, 1.0)


def test_more_candidates_than_letters_are_found_before_the_run() -> None:
    columns = [f"c{i}" for i in range(10)]
    assert [path for path, *_ in step(listwise=True, candidates=columns).check()] == [("candidates",)]
    assert list(step(candidates=columns).check()) == []


@pytest.mark.parametrize(
    ("candidates", "kinds", "path", "said"),
    [
        ("response", {"response": "text"}, ("candidates",), "`response` holds no list of answers, but one text"),
        ("prompt", {"prompt": "messages"}, ("candidates",), "but a conversation"),
        (("a", "b"), {"a": "text", "b": "texts"}, ("candidates", 1), "each of several candidates holds one answer"),
    ],
)
def test_candidates_of_another_type_are_refused(
    candidates: Any, kinds: dict[str, ColumnType | None], path: tuple[str | int, ...], said: str
) -> None:
    ((where, message, hint),) = step(candidates=candidates).check_columns({"pairs": Columns(kinds)})
    assert where == path
    assert said in message
    assert hint


def test_candidates_of_the_right_or_of_no_known_type_pass() -> None:
    for candidates, kinds in (("a", {"a": "texts"}), ("a", {"a": "json"}), ("a", {"a": None}), (("a", "b"), {"a": "text"})):
        assert not list(step(candidates=candidates).check_columns({"pairs": Columns(kinds, open=True)}))


def test_a_thought_s_sampling_keeps_its_own_defaults() -> None:
    thinking = step(chain_of_thought={"sampling": {"top_p": 0.9}}).params.chain_of_thought
    assert (thinking.sampling.temperature, thinking.sampling.max_tokens, thinking.sampling.top_p) == (1.0, 512, 0.9)


def test_a_column_is_a_candidate_once() -> None:
    assert [path for path, *_ in step(candidates=["a", "b", "a"]).check()] == [("candidates", 2)]


def test_the_reasons_that_earlier_runs_kept_still_tell_the_position() -> None:
    assert STUCK["tie: the first option in every order"] == (0, 2)
    assert STUCK["tie: the second option in every order"] == (1, 2)
    assert STUCK["tie: option C of 4 in every order"] == (2, 4)
    assert STUCK["tie: option I of 9 in every order"] == (8, 9)
    assert len(STUCK) == 2 + sum(range(2, 10))


def test_what_shared_a_batch_doesnt_choose_among_equal_candidates() -> None:
    verdicts = [Pair(i, j, Verdict(()), 0.5) for i, j in ((0, 1), (0, 2), (1, 2))]
    noise = 3e-8
    for low, high in ((0.0, noise), (noise, 0.0)):
        pair = best_against_worst(verdicts, {0: 0.7 + low, 1: 0.7 + high, 2: 0.1})
        assert (pair.first, pair.second) == (0, 2)


CRITERIA = [{"criterion": "Names a source.", "points": 5, "tags": ["a"]}, {"criterion": "Makes one up.", "points": -2.5}]
BY_POINTS = "- (5 points) Names a source.\n- (-2.5 points) Makes one up.\n\nWhich response earns more points?"


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (CRITERIA, BY_POINTS),
        (json.dumps(CRITERIA), BY_POINTS),
        ({"Names a source.": 5, "Makes one up.": -2.5}, BY_POINTS),
        ({"Names a source.": None}, "- (1 point) Names a source.\n\nWhich"),
        (["Names a source."], "- (1 point) Names a source.\n\nWhich"),
        ([{"description": "Names a\nsource.", "weight": 2}], "- (2 points) Names a source.\n\nWhich"),
        ("It names a source. [1]", "criteria:\n\nIt names a source. [1]\n\nWhich response meets them better?"),
        ("[see below]", "criteria:\n\n[see below]\n\nWhich"),
    ],
)
def test_a_row_is_judged_by_its_own_criteria(value: Any, asked: str) -> None:
    operator, llm = step(rubric="marks", principles=2), leaning({"bad": 0.0, "good": log(4)})
    (found,) = run(operator, llm, "bad", "good", marks=value)
    assert (found["principle"], found["chosen"], found["principles"]) == ("rubric", "good", ["rubric"])
    assert all(asked in question.last for question in llm.asked)
    row = {"uid": "r", "prompt": [user("why?")], "responses": ["bad", "good"], "marks": value}
    assert operator.calls_for(row) == len(llm.asked) == 2
    assert "marks" in operator.reads()
    assert operator.row_identity(row) != operator.row_identity({**row, "marks": "Another."})


@pytest.mark.parametrize("nothing", [None, "", " ", [], "[]"])
def test_a_row_without_criteria_is_judged_by_the_constitution(nothing: Any) -> None:
    llm = leaning({"bad": 0.0, "good": log(4)})
    assert run(step(rubric="marks"), llm, "bad", "good", marks=nothing) == run(step(), llm, "bad", "good")


@pytest.mark.parametrize("value", [[3], [{"points": 5}], [{"criterion": "a", "points": "many"}], [""], [None]])
def test_criteria_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="the rubric holds no criterion"):
        run(step(rubric="marks"), leaning({}), "bad", "good", marks=value)
