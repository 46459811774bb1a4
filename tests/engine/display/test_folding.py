"""What of a run's steps has a line of its own where there are more steps than lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.display.board import StepState
from caiflow.engine.display.folding import Fold, folded

STATUS = ("waiting", "running", "done", "cached", "failed", "skipped")


def steps(**status: str) -> list[StepState]:
    return [StepState(name.replace("_at_", "@"), status=status[name]) for name in status]


def shown(lines: list[StepState | Fold]) -> list[str]:
    return [line.name if isinstance(line, StepState) else line.title for line in lines]


def test_steps_that_have_room_are_left_as_they_are() -> None:
    all_steps = steps(a="done", b="running", c="waiting")
    assert folded(all_steps, 3) == all_steps


def test_those_made_are_folded_first_then_those_to_come() -> None:
    all_steps = steps(a="done", b="cached", c="running", d="waiting", e="waiting")
    assert shown(folded(all_steps, 4)) == ["2 made", "c", "d", "e"]
    assert shown(folded(all_steps, 3)) == ["2 made", "c", "2 to come"]


def test_arms_of_a_matrix_are_one_line_with_the_one_at_work_below() -> None:
    arms = steps(rl_at_a="done", rl_at_b="running", rl_at_c="waiting", rl_at_d="waiting", scores="waiting")
    lines = folded(arms, 4)
    assert shown(lines) == ["rl: 1 of 4 arms", "rl@b", "scores"]
    assert isinstance(lines[0], Fold)
    assert lines[0].names == ("b", "c", "d")


def test_a_failure_keeps_its_line() -> None:
    many = {f"s{i}": "done" for i in range(20)}
    assert shown(folded(steps(**many, bad="failed"), 4)) == ["20 made", "bad"]


@given(st.lists(st.tuples(st.sampled_from(STATUS), st.booleans()), min_size=1, max_size=60), st.integers(4, 30))
def test_no_step_is_lost_and_there_are_never_more_lines_than_room(all_steps: list[tuple[str, bool]], room: int) -> None:
    made = [StepState(f"rl@{i}" if arm else f"s{i}", status=status) for i, (status, arm) in enumerate(all_steps)]
    lines = folded(made, room)
    assert len(lines) <= room
    own = [line for line in lines if isinstance(line, StepState)]
    assert all(step in made for step in own)
    alone = [step for step in made if step.name.startswith("s")]
    told = {name for line in lines for name in (line.names if isinstance(line, Fold) else (line.name,))}
    if "more" not in lines[-1].__repr__():
        assert {step.name for step in alone} <= told


@pytest.mark.parametrize("room", [4, 8])
def test_many_at_once_are_counted(room: int) -> None:
    lines = folded(steps(**{f"s{i}": "running" for i in range(20)}), room)
    assert shown(lines) == [*(f"s{i}" for i in range(room - 1)), f"{20 - room + 1} more"]
