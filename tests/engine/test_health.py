"""Measures, readings, notes and requirements, on rows made by hand."""

from __future__ import annotations

import random

import pytest

from caiflow.engine.errors import WrongValue
from caiflow.engine.health import NONE_LEFT, Bound, Measure, Meter, Passed, Reading, notes, unmet


def short(passed: Passed) -> float | None:
    found = [float(len(row["text"]) < 3) for row in passed.made]
    return sum(found) / len(found) if found else None


SHORT = Measure("short", "<= 0.1", "texts that are short", "they teach little", "ask for more", short)
LOSS = Measure(
    "loss_fall", ">= 0", "fall of the loss", "nothing learned", "look", figure=lambda metrics: metrics.get("fall"), unit="nats"
)


@pytest.mark.parametrize(
    ("text", "held", "broken"),
    [("< 0.1", 0.09, 0.1), ("<= 10%", 0.1, 0.11), (">= 100", 100, 99), ("> 2.5", 2.6, 2.5), ("  <5 ", 4, 5)],
)
def test_a_bound_holds_or_not(text: str, held: float, broken: float) -> None:
    bound = Bound.parse(text)
    assert bound.holds(held)
    assert not bound.holds(broken)
    assert Bound.parse(str(bound)) == bound


@pytest.mark.parametrize("text", ["0.1", "== 3", "< x", "", "<", "< -1", "< 1 or so"])
def test_what_is_no_bound_is_refused_with_examples(text: str) -> None:
    with pytest.raises(WrongValue, match="a sign and a number"):
        Bound.parse(text)


def passed(number: int) -> tuple[tuple[int, ...], str, Passed]:
    return (number,), f"uid{number}", Passed([{"text": "ab" if number % 4 == 0 else "abc"}])


def test_a_reading_counts_the_flawed_and_names_the_first_in_the_order_of_the_input() -> None:
    rows = [passed(number) for number in range(20)]
    expected = Reading(0.25, 5, 20, ("uid0", "uid4", "uid8"))
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        meter = Meter([SHORT])
        for row in rows:
            meter.add(*row)
        assert meter.readings({}) == {"short": expected}


def test_rows_that_say_nothing_dont_count() -> None:
    meter = Meter([SHORT])
    meter.add((0,), "a", Passed([], dropped="asked to"))
    assert meter.readings({}) == {}
    meter.add((1,), "b", Passed([{"text": "long enough"}]))
    assert meter.readings({}) == {"short": Reading(0.0, 0, 1, ())}


def test_a_note_is_a_sentence_with_its_figure_and_rows() -> None:
    (note,) = notes([SHORT], {"short": Reading(0.25, 5, 20, ("a", "b", "c"))})
    assert note == {
        "measure": "short",
        "value": 0.25,
        "threshold": 0.1,
        "message": "texts that are short: 5 of 20 (25%); they teach little; ask for more",
        "uids": ["a", "b", "c"],
    }
    (within,) = notes([SHORT], {"short": Reading(0.58, 3, 6, ("a",))})
    assert within["message"].startswith("texts that are short: 58%, too much of it in 3 of 6 rows; ")
    assert notes([SHORT], {"short": Reading(0.1, 2, 20)}) == []
    assert notes([SHORT], {}) == []


def test_figures_come_out_of_metrics_with_their_unit_or_as_a_share() -> None:
    (note,) = notes([LOSS], Meter([LOSS]).readings({"fall": -0.5}))
    assert note["message"] == "fall of the loss: -0.5 nats; nothing learned; look"
    assert Meter([LOSS]).readings({}) == {}


def test_a_step_that_leaves_nothing_is_noted_and_one_that_got_nothing_isnt() -> None:
    def found(rows_in: int | None, rows_out: int) -> list[str]:
        readings = Meter([NONE_LEFT]).readings({"rows_in": rows_in, "rows_out": rows_out})
        return [note["measure"] for note in notes([NONE_LEFT], readings)]

    assert found(10, 0) == ["no_rows"]
    assert found(10, 1) == []
    assert found(0, 0) == []
    assert found(None, 0) == []


def test_requirements_say_value_and_bound() -> None:
    values = {"rows": 22.0, "copies_critique": 0.54}
    assert unmet({"rows": ">= 20", "copies_critique": "< 0.6"}, values) == []
    assert unmet({"rows": ">= 100", "copies_critique": "< 10%"}, values) == [
        "rows is 22, required >= 100",
        "copies_critique is 0.54, required < 0.1",
    ]
    assert unmet({"circles": "< 0.1"}, values) == ["circles can't be measured here, required < 0.1"]
