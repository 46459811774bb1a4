"""When a node counts as frozen: its silence alone counts, not this process's own, and several at once are waited for longer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.run.on_ray import nodes
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.nodes import Node, Probe, alive
from caiflow.engine.run.on_ray.watching import CUT_OFF_S, FROZEN_S, LOOK_S, Latecomers, Silence, too_silent

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


class Slow(Probe):
    """Has a node answer only once a file is there."""

    free: Path

    def ask(self, node: Node) -> Any:
        import ray

        def look(free: str, mark: str) -> Any:
            while not Path(free).exists():
                time.sleep(0.05)
            return nodes._look(mark, {}, set())

        return ray.remote(look).options(num_cpus=0).remote(str(self.free), str(self._mark))


@pytest.mark.slow
def test_a_node_that_comes_and_says_nothing_is_named_once_and_used_when_it_answers(tmp_path: Path, cluster: Cluster) -> None:
    (node, *_) = alive()
    Slow.free = tmp_path / "free"
    late = Latecomers([], lambda: Slow(tmp_path, {}), patience_s=0.5)

    def said_within(seconds: float) -> list[str]:
        until, said = time.monotonic() + seconds, list[str]()
        while not said and time.monotonic() < until:
            said += late.look([node])
            time.sleep(0.05)
        return said

    (first,) = said_within(60)
    assert "no answer in 0.5 s" in first
    assert late.unasked == {node.id}
    assert said_within(1.5) == []
    Slow.free.touch()
    (then, *_) = said_within(60)
    assert then.endswith("it is used")
    assert late.unasked == set()
    late.close()
