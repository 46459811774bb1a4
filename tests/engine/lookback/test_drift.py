"""The test for drift: its level, its power, and what it makes of cases that can be counted by hand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from caiflow.engine.lookback.drift import Said, drift, drifted
from support.generators import Generator

ROWS = 100


def found(one: Generator, other: Generator, trial: int) -> bool:
    """Return whether answers to the same questions seem to be of two models, at the level of 5%."""
    rng = random.Random(trial)
    return drift([Said(one(q, rng)) for q in range(ROWS)], [Said(other(q, rng)) for q in range(ROWS)], trial) <= 0.05


def test_another_model_is_seen_and_the_same_one_is_not() -> None:
    base, other = Generator(), Generator(preferring=0.6)
    assert sum(found(base, base, trial) for trial in range(30)) <= 3
    assert sum(found(base, other, trial) for trial in range(12)) >= 11


@pytest.mark.soak
@pytest.mark.slow
def test_power_and_level_over_many_trials() -> None:
    base, other = Generator(), Generator(preferring=0.6)
    assert sum(found(base, other, trial) for trial in range(200)) / 200 >= 0.95
    assert sum(found(base, base, trial) for trial in range(200)) / 200 <= 0.05 + 2 * 0.0154  # two standard errors


@pytest.mark.soak
@pytest.mark.slow
def test_a_real_models_answers_and_those_of_its_changed_weights(tmp_path: Path) -> None:
    """The bundled model at temperature 1 against itself, and with noise of 0.3 standard deviations on its head."""
    from support.generators import drawn_answers

    same = drawn_answers(tmp_path, rows=ROWS, draws=8, noise=0.0)
    changed = drawn_answers(tmp_path, rows=ROWS, draws=4, noise=0.3)
    rng = random.Random(5)

    def trial(other: list[list[str]]) -> bool:
        kept, new = [], []
        for row, answers in enumerate(same):
            first, second = rng.sample(answers, 2)
            kept.append(Said(first))
            new.append(Said(second if other is same else rng.choice(other[row])))
        return drift(kept, new, rng.randrange(1 << 30)) <= 0.05

    alarms, seen = (sum(trial(other) for _ in range(100)) for other in (same, changed))
    assert alarms <= 9
    assert seen >= 95


def test_pairs_that_all_differ_one_way_are_as_unlikely_as_their_signs() -> None:
    up = [Said("", (1.0,))] * 6
    down = [Said("", (0.0,))] * 6
    assert drift(up, down) == pytest.approx(2 / 2**6, abs=0.015)
    assert drift(up, [*down[:3], *[Said("", (2.0,))] * 3]) > 0.5
    assert drift(up, up) == 1.0


def test_the_levels_of_several_steps_are_shared() -> None:
    assert drifted([0.01, 0.04, 0.03]) == [True, False, False]
    assert drifted([0.01, 0.04, 0.02]) == [True, True, True]
    assert drifted([]) == []
