"""When a node counts as frozen: its silence alone counts, not this process's own, and several at once are waited for longer."""

from __future__ import annotations

from caiflow.engine.run.on_ray.nodes import Node
from caiflow.engine.run.on_ray.watching import CUT_OFF_S, FROZEN_S, LOOK_S, Silence, too_silent

ONE, OTHER = Node("a", "a", 1, 1), Node("b", "b", 1, 1)


def test_one_that_stops_answering_is_frozen_after_its_time_and_no_earlier() -> None:
    silence, looked = Silence(0.0), 0.0
    while not too_silent({ONE: silence.after(looked, answered=looked <= 20), OTHER: 0.0}):
        looked += LOOK_S
    assert 20 + FROZEN_S < looked <= 20 + FROZEN_S + LOOK_S
    assert not too_silent({ONE: silence.after(looked + LOOK_S, answered=True), OTHER: 0.0})


def test_one_that_never_answered_is_not_frozen() -> None:
    silence = Silence(0.0)
    assert [silence.after(float(second), answered=False) for second in range(30)] == [0.0] * 30


def test_a_process_that_was_itself_stopped_has_heard_no_silence() -> None:
    silence = Silence(0.0)
    silence.after(1.0, answered=True)
    assert not too_silent({ONE: silence.after(600.0, answered=False), OTHER: 0.0})


def test_nodes_that_fall_silent_together_are_waited_for_longer() -> None:
    for waited_s, frozen in ((FROZEN_S + 1, []), (CUT_OFF_S + 2, [ONE, OTHER])):
        assert too_silent({ONE: waited_s, OTHER: waited_s - LOOK_S}) == frozen
    assert too_silent({ONE: FROZEN_S + 1, OTHER: 1.0}) == [ONE]
