"""Judges as rewards: who meets whom, what a reply wins, what is asked when, and trainings in which a judge is wrong.

The model that judges is a function of what it is asked, behind the link that a run has to an engine.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request
from caiflow.engine.operator import Expected, StepContext
from caiflow.engine.plan.components import Resolver
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.operators.judge import Judge
from caiflow.operators.judging.params import GroupJudging, JudgeParams
from caiflow.operators.judging.ranked import parse_ranking
from caiflow.operators.rl import Rl
from caiflow.operators.training.asked import Drawn
from caiflow.operators.training.contests import Contests, meetings
from caiflow.operators.training.params import RlParams
from support.asked_trainings import FIELDS, carried_out, cut_and_resumed
from support.row_llm import Asked, RuleLLM, RuleLLMs
from support.runs_without_ray import AskedLink
from support.small_constitution import small_constitution
from support.small_models import small_model

CONTEXT = StepContext(seed=3, constitution=small_constitution())
PROMPT = [{"role": "user", "content": "How?"}]
WORTH = {"bad": 0.0, "fair": math.log(2), "good": math.log(4), "best": math.log(8)}


def options(text: str) -> list[str]:
    """Return the options of a question in the order shown."""
    return [line[4:] for line in text.split("Options:\n")[1].splitlines()]


def leaning(first: float = 0.0) -> RuleLLM:
    """A judge that goes by worth, and likes what is shown first."""

    def choose(asked: Asked) -> dict[str, float]:
        one, other = (WORTH[text] for text in options(asked.last))
        return {"A": one + first, "B": other}

    return RuleLLM(choose_by=choose)


def contests(llm: RuleLLM, count: int, **how: Any) -> Contests:
    judging = GroupJudging.model_validate({"model": "m", **how})
    return Contests("good", judging, CONTEXT, count, RuleLLMs({"m": llm}), lambda _, ids: list(WORTH)[ids[0]])


def won(
    llm: RuleLLM, replies: Sequence[str], told: dict[str, float] | None = None, more: Any = None, **how: Any
) -> list[float]:
    """Return what these replies to one prompt win."""
    ids = [[list(WORTH).index(text)] for text in replies]
    log: dict[str, float] = {} if told is None else told
    reward = contests(llm, len(replies), **how)
    return asyncio.run(reward([PROMPT] * len(ids), ids, log.__setitem__, more=more))


def close(rewards: Sequence[float]) -> Any:
    return pytest.approx(rewards, abs=1e-5)


@given(st.integers(2, 12), st.integers(1, 11))
def test_each_reply_meets_as_many_others_once_each(count: int, each: int) -> None:
    if count * min(each, count - 1) % 2:
        with pytest.raises(ValueError, match="opponents each"):
            meetings(count, each)
        return
    found = [frozenset(pair) for pair in meetings(count, each)]
    assert len(set(found)) == len(found)
    assert all(len(pair) == 2 for pair in found)
    assert Counter(place for pair in found for place in pair) == dict.fromkeys(range(count), min(each, count - 1))


def test_a_reply_s_reward_is_its_mean_share_of_the_wins_over_both_orders() -> None:
    llm = leaning()
    assert won(llm, ["bad", "fair", "best"]) == close([(1 / 3 + 1 / 9) / 2, (2 / 3 + 1 / 5) / 2, (8 / 9 + 4 / 5) / 2])
    assert len(llm.asked) == 3 * 2, "each of three in both orders: G(G-1)"
    for_first = RuleLLM(choose_by=lambda asked: {"A": 0.0, "B": -99.0})
    assert won(for_first, ["bad", "fair", "best"]) == close([0.5] * 3), "a liking for a place gives nobody anything"


def test_equal_replies_are_even_without_a_call() -> None:
    llm = leaning()
    told: dict[str, float] = {}
    assert won(llm, ["bad", "bad", "best"], told) == close([(0.5 + 1 / 9) / 2] * 2 + [8 / 9])
    assert len(llm.asked) == 2, "both pairs of different ones are the same question"
    assert told["judge/good/equal_answers"] == pytest.approx(1 / 3)
    assert won(RuleLLM(), ["bad"] * 4) == [0.5] * 4


def test_it_is_asked_about_so_many_opponents_or_about_the_row_s_own_answer() -> None:
    llm = leaning()
    assert won(llm, ["bad", "fair", "good", "best"], opponents=2) == close(
        [(1 / 3 + 1 / 9) / 2, (2 / 3 + 1 / 3) / 2, (2 / 3 + 1 / 3) / 2, (8 / 9 + 2 / 3) / 2]
    )
    assert len(llm.asked) == 4 * 2
    alone = leaning()
    anchors = [{"known": "fair"}] * 3
    assert won(alone, ["bad", "fair", "best"], more=anchors, against="known") == close([1 / 3, 0.5, 4 / 5])
    assert len(alone.asked) == 4
    with pytest.raises(StepError, match=r"rewards\.good: a row has no text in `known`, got 'None'"):
        won(alone, ["bad", "best"], more=[{"known": None}] * 2, against="known")


def test_a_pair_is_asked_about_under_one_principle_whenever_it_comes_up() -> None:
    def asked(replies: Sequence[str]) -> set[str]:
        llm = leaning()
        won(llm, replies)
        return {one.last for one in llm.asked}

    pair = asked(["good", "best"])
    assert pair == asked(["best", "good"])
    assert pair < asked(["bad", "best", "good"])
    principles = [text.split("\n\nOptions")[0] for text in asked(list(WORTH))]
    assert len(set(principles)) > 1, "other pairs come under others"
    assert set(Counter(principles).values()) <= {2, 4, 6, 8}, "both orders under one"


def test_its_figures_are_those_that_judge_gives() -> None:
    told: dict[str, float] = {}
    llm = leaning(first=0.4)
    won(llm, ["bad", "best"], told)
    params = JudgeParams.model_validate({"input": "rows", "model": "m", "candidates": ["x", "y"], "principles": 1})
    operator = Judge(params, CONTEXT)
    row = {"uid": "1", "prompt": PROMPT, "x": "bad", "y": "best"}
    (made,) = asyncio.run(operator.row(row, leaning(first=0.4)))  # type: ignore[misc]
    for name, value in operator.metrics([{**row, **made}], {}).items():  # type: ignore[dict-item]
        if isinstance(value, float):
            assert told[f"judge/good/{name}"] == pytest.approx(value), name
    assert told["judge/good/position_bias"] > 0.03
    assert told["judge/good/longer_won"] == pytest.approx(0.889, abs=0.03), "the better one is the longer one"
    shares = [value for name, value in told.items() if name.startswith("principle/good/p") and name.endswith("/share")]
    assert sorted(shares) == [0.0, 0.0, 0.0, 1.0], "those that nothing was drawn under count in the mean over batches"


def test_a_vote_that_can_t_be_read_is_even_and_a_judge_that_can_t_be_read_ends_it() -> None:
    def say(asked: Asked) -> str:
        return "hm" if {"bad", "best"} == set(options(asked.last)) else "A)"

    told: dict[str, float] = {}
    assert won(RuleLLM(say=say), ["bad", "fair", "best"], told, method="text") == [0.5] * 3
    assert told["unread/good"] == pytest.approx(1 / 3)
    with pytest.raises(StepError, match=r"rewards\.good: none of 3 verdicts can be read, the judge answered 'hm'"):
        won(RuleLLM(say=lambda _: "hm"), ["bad", "fair", "best"], method="text")

    def refuse(kind: str) -> RuleLLM:
        def choose(asked: Asked) -> dict[str, float]:
            raise EngineError("no", kind=kind)

        return RuleLLM(choose_by=choose)

    assert won(refuse("overflow"), ["bad", "best"], told) == [0.5, 0.5]
    assert told["unread/good"] == 1
    with pytest.raises(EngineError):
        won(refuse("auth"), ["bad", "best"])


# ------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("B) > (A) > (C)", {"B": 1, "A": 0.5, "C": 0}),
        ("1. C 2. B 3. A", {"C": 1, "B": 0.5, "A": 0}),
        ("C, A, B. C is kind.", {"C": 1, "A": 0.5, "B": 0}),
        ("A = B > C", {"A": 0.75, "B": 0.75, "C": 0}),
        *((text, None) for text in ("A > B", "A > B > B", "A < B < C", "A > B > D", "")),
        *((text, None) for text in ("A is best, then B, C", "C > B > A is wrong")),
    ],
)  # fmt: skip
def test_a_ranking_names_every_letter_once_with_nothing_between(text: str, ranks: dict[str, float] | None) -> None:
    assert parse_ranking(text, "ABC") == ranks


def ranking(asked: Asked) -> str:
    shown = options(asked.last)
    best_first = sorted(range(len(shown)), key=lambda place: -WORTH[shown[place]])
    return ") > (".join("ABCD"[place] for place in best_first) + ")"


def test_a_list_is_ranked_in_a_drawn_order_and_in_its_reverse() -> None:
    llm = RuleLLM(say=ranking)
    told: dict[str, float] = {}
    assert won(llm, ["best", "bad", "good", "bad"], told, listwise=True) == [1, 0, 0.5, 0]
    shown = [options(asked.last) for asked in llm.asked]
    assert shown[0] == shown[1][::-1]
    assert sorted(shown[0]) == ["bad", "best", "good"], "equal ones are shown once"
    assert told["judge/good/order_flips"] == 0
    again = RuleLLM(say=ranking)
    won(again, ["bad", "good", "bad", "best"], listwise=True)
    assert [options(asked.last) for asked in again.asked] == shown

    stuck = RuleLLM(say=lambda _: "A > B > C")
    assert won(stuck, ["best", "bad", "good"], told, listwise=True) == [0.5] * 3
    assert told["judge/good/order_flips"] == 1
    assert told["judge/good/position_bias"] == pytest.approx(2 / 3 - 1 / 3)
    half = RuleLLM(say=lambda asked: ranking(asked) if options(asked.last) == shown[0] else "hm")
    assert sorted(won(half, ["best", "bad", "good"], told, listwise=True)) == [0.25, 0.5, 0.75]
    assert told["unread/good"] == 1


# ------------------------------------------------------------------------------------- before the batch is drawn


def test_a_question_is_put_as_soon_as_its_replies_are_there_and_once() -> None:
    llm = leaning()

    async def drawn_one_by_one() -> list[int]:
        reward, asked = contests(llm, 4), []
        drawn = Drawn([PROMPT] * 4, [{}] * 4, {})
        for place in (2, 0, 3):
            drawn.replies[place] = list(WORTH)[place]
            reward.begin(reward.questions(drawn, place))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asked.append(len(reward._begun))
        await reward([PROMPT] * 4, [[n] for n in range(4)], lambda *_: None)
        return asked

    assert asyncio.run(drawn_one_by_one()) == [0, 1, 3]
    assert len(llm.asked) == 4 * 3


# ------------------------------------------------------------------------------------- what a spec says


def params(**fields: Any) -> RlParams:
    return RlParams.model_validate({**FIELDS, "algorithm": "grpo", "num_generations": 8, **fields})


def judged(**how: Any) -> dict[str, Any]:
    return {"good": {"judge": {"model": "m", **how}}}


def test_plan_knows_its_calls() -> None:
    def calls(**how: Any) -> int | None:
        found = Rl(params(rewards=judged(**how), max_steps=3), CONTEXT).calls_expected({"rows": Expected(36)})
        return found and found.number

    assert calls() == 3 * 2 * 8 * 7
    assert calls(opponents=3) == 3 * 2 * 8 * 3
    assert calls(against="known") == 3 * 16 * 2
    assert calls(listwise=True) == 3 * 2 * 2
    assert calls(swap=False, principles=2) == 3 * 2 * 28 * 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rewards": {"good": {"weight": 1}}}, "a score is a `grader`'s or a `judge`'s"),
        ({"rewards": judged(opponents=3), "num_generations": 16, "algorithm": "ppo"}, None),
        ({"rewards": judged(), "algorithm": "ppo", "num_generations": None}, "and there is one alone"),
        ({"rewards": judged(opponents=3), "per_device_train_batch_size": 10, "num_generations": 5}, "an odd number of ends"),
        ({"rewards": judged(listwise=True, opponents=2)}, "without opponents"),
        ({"rewards": judged(against="known", opponents=2)}, "leave one of them out|`opponents` or what it is `against`"),
        ({"rewards": judged(), "gold": "good"}, "`gold` names one of `rewards` that has weight 0"),
        ({"rewards": {"pm": 1, "good": {**judged()["good"], "weight": 0}}, "gold": "good"}, "a half on the mean"),
        ({"rewards": {"pm": 1, "good": {**judged(against="known")["good"], "weight": 0}}, "gold": "good"}, None),
    ],
)  # fmt: skip
def test_what_can_t_be_judged_is_refused(fields: dict[str, Any], told: str | None) -> None:
    if told is None:
        params(**fields)
        return
    with pytest.raises(ValueError, match=told):
        params(**fields)


def test_it_goes_by_the_constitution_unless_it_has_an_instruction() -> None:
    by_principles, by_instruction = params(rewards=judged()), params(rewards=judged(instruction="Which is shorter?"))
    assert by_principles.by_principles == ("judge",)
    assert not by_instruction.by_principles
    assert [found.path for found in Rl(by_principles, StepContext()).check()] == [("rewards", "good", "judge")]
    assert not list(Rl(by_instruction, StepContext()).check())
    assert list(Rl(by_principles, CONTEXT).asks()) == ["m"]
    assert Rl(params(rewards=judged(against="known")), CONTEXT).needs() == {"rows": ["prompt", "known"]}


def test_only_an_edit_of_what_a_judge_reads_trains_again(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "How?"}\n')
    rules = [{"id": "kind", "critique": "What is unkind?", "revision": "Be kind.", "judge": "Which is kinder?"}]
    shown = [{"prompt": "Hi", "response": "No", "principle": "kind", "critique": "Rude.", "revision": "Hello"}]

    def decides() -> tuple[Any, Any]:
        """Return what the training depends on, and what a step that reads the other texts does."""
        steps = {
            "rows": {"op": "load", "source": "rows.jsonl"},
            "said": {"op": "generate", "input": "rows", "model": "base"},
            "told": {"op": "critique", "input": "said", "model": "base"},
            "tuned": {"op": "rl", "input": "rows", "model": "base", "num_generations": 4, "rewards": judged(model="base")},
        }
        given = {"caiflow_constitution": 1, "name": "own", "principles": rules, "few_shot": {"critique": shown}}
        spec = {"caiflow": 1, "name": "own", "models": {"base": {"source": "tiny"}}, "constitution": given, "steps": steps}
        (tmp_path / "spec.yaml").write_text(json.dumps(spec))
        read = load_spec(tmp_path / "spec.yaml")
        resolver = Resolver(read, store := Store(tmp_path / "home"))
        for name in ("rows", "said"):
            components, artifact = resolver.settle(read.steps[name])
            if artifact is None:
                with RowsWriter(staged := store.stage(digest(components))) as out:
                    out.write_rows([{"uid": "1", "prompt": PROMPT, "response": "So."}])
                resolver.artifacts[name] = store.seal(digest(components), staged, {"kind": "rows"})
        return resolver.components(read.steps["tuned"]), resolver.components(read.steps["told"])

    begun = decides()
    rules[0]["critique"] = "What is rude?"
    shown[0]["critique"] = "Unkind."
    tuned, told = decides()
    assert tuned is not None
    assert tuned == begun[0]
    assert told != begun[1]
    rules[0]["judge"] = "Which is more polite?"
    assert decides()[0] != tuned


# ------------------------------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return small_model(tmp_path_factory.mktemp("model"))


def likes_length(request: Request) -> Answer:
    """Prefer the longer reply, by its characters; as the gold grader say Yes the likelier the shorter one is."""
    assert not isinstance(request.prompt, str)
    asked = request.prompt[-1]["content"]
    if "Options:" not in asked:
        share = 1 / (1 + math.exp(len(asked.partition("[")[2]) / 8 - 2))
        return Completion("", logprobs={"Yes": math.log(share), "No": math.log1p(-share)})
    first, second = asked.split("Options:\n(A) ")[1].split("\n(B) ", 1)
    share = 1 / (1 + math.exp(-0.3 * (len(first) - len(second)) - 0.2))
    return Completion("", logprobs={"A": math.log(share), "B": math.log1p(-share)})


@pytest.mark.slow
def test_a_judge_that_likes_length_is_found_out_and_no_verdict_is_paid_twice(tmp_path: Path, model: ModelSource) -> None:
    gold = {"grader": {"model": "m", "question": "Is this good? [{{ response }}"}, "weight": 0}
    fields = {
        "algorithm": "grpo", "num_generations": 4, "max_steps": 30, "gold": "gold",
        "rewards": {**judged(opponents=2), "gold": gold},
    }  # fmt: skip
    whole, cut = AskedLink(says=likes_length), AskedLink(says=likes_length)
    undisturbed = carried_out(tmp_path / "whole", model, whole, **fields)
    metrics = undisturbed.metrics
    assert metrics["longer_won"] > 0.7
    assert 0 < metrics["position_bias"] < 0.1
    assert metrics["rewards_good_mean"] == pytest.approx(0.5, abs=1e-5), "whatever is learnt"
    assert metrics["gold_best"] - metrics["gold_end"] >= 0.05
    assert metrics["gold_onset"] <= 20
    assert set(metrics["judges"]["good"]["by_principle"]) == {"p1", "p2", "p3", "p4"}
    assert "judge_good_ties" not in metrics
    operator = Rl(RlParams.model_validate({**FIELDS, **fields}), CONTEXT)
    notes = {one.name: reading for one in operator.measures() if one.figure and (reading := one.figure(metrics)) is not None}
    assert notes["gold_fall"].first == f"step {metrics['gold_onset']}"

    asked = {(repr(request.prompt), request.seed) for request in whole.answered}
    assert len(asked) == len(whole.answered) == undisturbed.counts["calls"]
    resumed = cut_and_resumed(tmp_path / "cut", model, cut, save_steps=4, **fields)
    assert len(cut.answered) == len(whole.answered)
    assert resumed.counts["reused_calls"] > 0
    curves = [(tmp_path / run / "staged/_history.jsonl").read_text() for run in ("whole", "cut")]
    assert curves[0] == curves[1]
    assert json.loads(curves[0].splitlines()[0])["judge/good/longer_won"] > 0.5
