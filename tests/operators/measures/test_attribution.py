"""What each principle did: counted by hand, and planted truths found within their intervals."""

from __future__ import annotations

import random

import pytest

from caiflow.operators.measures.attribution import Graded, Judged, Revised, words_changed


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


def test_how_far_a_principle_moves_the_grade_is_found_within_its_interval() -> None:
    """On a scale from 0 to 4 `kind` takes 1.2 off on average, `idle` nothing."""
    chance, inside = random.Random(3), {"kind": 0, "idle": 0}
    for _ in range(200):
        graded = Graded((0, 4))
        for _ in range(60):
            graded.see("kind", 4, 4 - 4 * (chance.random() < 0.3))
            graded.see("idle", *chance.choice(((4, 0), (0, 4), (2, 2))))
        found = {name: one["grade_moved"] for name, one in graded.figures().items()}
        for name, moved in (("kind", -1.2), ("idle", 0.0)):
            inside[name] += found[name]["low"] <= moved <= found[name]["high"]
        assert {one["n"] for one in found.values()} == {60}
    assert all(180 <= number <= 199 for number in inside.values()), inside
