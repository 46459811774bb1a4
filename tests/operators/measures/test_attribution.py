"""What each principle did: counted by hand, and planted truths found within their intervals."""

from __future__ import annotations

import random

import pytest

from caiflow.operators.measures.attribution import Judged, Revised, words_changed


def test_words_changed_are_those_that_the_other_text_has_not() -> None:
    assert words_changed("one two three", "One, two, three!") == 0
    assert words_changed("one two", "three four") == 1
    assert words_changed("a a b", "a c") == pytest.approx(3 / 5)  # of five words `a` is in both
    assert words_changed("", "") == 0


def test_a_principle_that_turns_a_label_is_told_from_one_that_follows() -> None:
    judged = Judged()
    judged.see(["kind", "safe", "loud"], [0.4, 0.6, 0.4, 0.6, 0.9, 0.1], swap=True)  # firsts: 0.4, 0.4, 0.9; together 0.567
    judged.see(["kind"], [0.9, 0.1], swap=True)  # tells nothing
    judged.see(["kind", "safe"], [0.9, 0.1], swap=True)  # votes that aren't there
    found = judged.figures()
    assert {name: one["labels_turned"]["rate"] for name, one in found.items()} == {"kind": 0, "loud": 1, "safe": 0}
    assert found["loud"]["preference_moved"]["mean"] == pytest.approx(1.7 / 3 - 0.4)
    assert found["kind"]["preference_moved"]["mean"] == pytest.approx(1.7 / 3 - 1.3 / 2)
    assert {one["labels_turned"]["n"] for one in found.values()} == {1}


def test_what_was_planted_lies_within_the_intervals() -> None:
    """`brave` changes 70% of the answers and `idle` 5%; `heavy` decides every pair, `light` none."""
    chance, inside = random.Random(5), {"brave": 0, "idle": 0}
    for _ in range(200):
        revised = Revised()
        for _ in range(80):
            for name, rate in (("brave", 0.7), ("idle", 0.05)):
                revised.see(name, "as it was", "another" if chance.random() < rate else "as it was")
        found = revised.figures()
        for name, rate in (("brave", 0.7), ("idle", 0.05)):
            told = found[name]["changed"]
            inside[name] += told["low"] <= rate <= told["high"]
            assert found[name]["words_changed"] == pytest.approx(told)
    assert all(180 <= number <= 199 for number in inside.values()), inside
    judged = Judged()
    for _ in range(60):
        side = chance.choice((0.1, 0.9))
        judged.see(["heavy", "light", "faint"], [side, 1 - side, 0.52, 0.48, 0.47, 0.53], swap=True)
    found = judged.figures()
    assert found["heavy"]["labels_turned"]["rate"] == pytest.approx(0.5, abs=0.2)
    assert found["light"]["labels_turned"]["rate"] == 0
    assert found["heavy"]["preference_moved"]["low"] > found["light"]["preference_moved"]["high"]
