"""Arms of a matrix compared prompt by prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest

from caiflow.operators.evaluation.conduct.arms import differences


def rows(met: list[bool], failed: int = -1) -> list[dict[str, Any]]:
    """One answer to each prompt, in the form of `evaluate`."""
    return [{"uid": f"p{i}", "failed": "lost" if i == failed else None, "checks": ["c"] * one} for i, one in enumerate(met)]


def told(*arms: list[dict[str, Any]]) -> dict[str, Any]:
    names = [f"rl@{place}" for place in range(len(arms))]
    found = differences({(name, "s"): arm for name, arm in zip(names, arms, strict=True)}, ["base", *names], ["c"], ["s"])
    return found["rl@*"]["s"]["c"] if found else {}


def test_the_same_rates_differ_where_one_arm_loses_only_what_the_other_keeps() -> None:
    one, other = rows([True] * 30 + [False] * 30), rows([True] * 20 + [False] * 40)
    found = told(one, other)
    assert (found["from"], found["to"], found["n"]) == ("rl@0", "rl@1", 60)
    assert found["mean"] == pytest.approx(-1 / 6)
    assert found["high"] < 0, "Wilson's intervals of 50% and 33% of 60 overlap"
    scattered = told(one, rows([False] * 20 + [True] * 20 + [False] * 20))
    assert (scattered["mean"], scattered["low"] < 0 < scattered["high"]) == (pytest.approx(-1 / 6), True)


def test_what_few_prompts_leave_open_is_said() -> None:
    found = told(rows([True, False] * 3), rows([True, False] * 3))
    assert (found["mean"], found["low"] < 0 < found["high"]) == (0, True)
    assert found["unseen"] == pytest.approx(found["high"])
    assert found["unseen"] > told(rows([True, False] * 100), rows([True, False] * 100))["unseen"]


def test_arms_that_share_no_answered_prompt_are_not_compared() -> None:
    assert told(rows([True], failed=0), rows([True])) == {}
    assert differences({}, ["base", "rl@only"], ["c"], ["s"]) == {}


def test_equal_arms_are_seldom_said_to_differ_however_many_they_are() -> None:
    dice, wrong = random.Random(3), 0
    for _ in range(400):
        arms = [rows([dice.random() < 0.4 for _ in range(40)]) for _ in range(5)]
        found = told(*arms)
        wrong += found["low"] > 0 or found["high"] < 0
    assert wrong <= 0.08 * 400, wrong


def test_answers_that_a_grader_did_not_read_say_nothing_of_it() -> None:
    """One arm met it wherever it was read; of the second half it gave no reply, failed, or was never asked."""
    read = [{"uid": f"p{i}", "failed": None, "checks": ["g"], "grades": {"g": 1.0}} for i in range(8)]
    unread = [{**row, "checks": [], "grades": {"g": None} if i % 2 else {}} for i, row in enumerate(read)]
    groups = {("rl@0", "s"): read, ("rl@1", "s"): [*read[:4], *unread[4:]], ("rl@0", "t"): unread, ("rl@1", "t"): unread}
    found = differences(groups, ["rl@0", "rl@1"], ["g"], ["s", "t"], graders=["g"])["rl@*"]
    assert list(found) == ["s"], "the grader was asked about no answer to the other set"
    assert (found["s"]["g"]["n"], found["s"]["g"]["mean"]) == (4, 0)
