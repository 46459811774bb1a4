"""What the gate has vLLM compute where its cache is scarce, by a model of vLLM's scheduler: the same counts everywhere."""

from __future__ import annotations

import random

import pytest

from support.paged import Call, Counts, count

SIZE = 32


def rows(number: int, calls: int, lengths: str) -> dict[int, list[Call]]:
    """Return rows of long dialogues whose later calls stand behind the same examples."""
    dice, made = random.Random(7), {}
    for row in range(number):
        told = [row + 1] * min(1200, max(200, round(dice.lognormvariate(6.1, 0.4))))
        made[row] = []
        for call in range(calls):
            length = 64 if lengths == "even" else max(1, min(64, round(dice.lognormvariate(2.3, 1.0))))
            answer = [1000 * (row + 1) + call] * length
            made[row].append(Call([*([0] * 1066 if call else []), *told], answer))
            told = [*told, *answer, *[row + 1] * 40]
    return made


def counted(made: dict[int, list[Call]], *, gated: bool = True, back_steps: float = 0.05) -> Counts:
    return count(made, slots=16, blocks=311, size=SIZE, gated=gated, back_steps=back_steps)


@pytest.mark.parametrize(
    ("number", "calls", "lengths", "most", "steps"),
    [
        (80, 3, "long_tailed", 1.02, 1.01),
        (40, 9, "long_tailed", 1.07, 1.01),
        (80, 3, "even", 1.05, 1.09),
        (40, 9, "even", 1.08, 1.18),
    ],
)
def test_each_prefix_is_computed_about_once_in_about_as_many_steps(
    number: int, calls: int, lengths: str, most: float, steps: float
) -> None:
    made = rows(number, calls, lengths)
    by_room, as_they_come = counted(made), counted(made, gated=False)
    assert by_room.computed <= most * by_room.ideal
    assert by_room.steps <= steps * as_they_come.steps
    assert as_they_come.computed > 1.25 * as_they_come.ideal


@pytest.mark.parametrize("lengths", ["even", "long_tailed"])
def test_about_the_same_is_computed_however_soon_rows_come_back(lengths: str) -> None:
    made = rows(30, 6, lengths)
    soon, late = counted(made, back_steps=0.01), counted(made, back_steps=0.2)
    assert soon == counted(made, back_steps=0.01)
    assert late.computed == pytest.approx(soon.computed, rel=0.001)
    assert late.steps == pytest.approx(soon.steps, rel=0.015)
