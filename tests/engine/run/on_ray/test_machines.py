"""Which nodes a process is kept off: those that are lost or say nothing, where others have room for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from caiflow.engine.run.on_ray.actors import successor
from caiflow.engine.run.on_ray.engines import Engines
from caiflow.engine.run.on_ray.machines import Machines
from caiflow.engine.run.on_ray.nodes import Labels, Node, Probe
from caiflow.engine.run.on_ray.waits import Waits
from caiflow.engine.run.on_ray.watching import Latecomers, NodeWatch

NODES = [
    Node(name, "127.0.0.1", 1, gpus, labels={"card": card})
    for name, gpus, card in (("a", 1, "x"), ("b", 1, "x"), ("c", 4, "y"))
]


class Frozen(NodeWatch):
    """Finds that the node `a` says nothing."""

    def gone(self, node: str) -> bool:
        return node == "a"


@pytest.mark.parametrize(
    ("gpus", "processes", "card", "lost", "avoided"),
    [
        (1, 1, "", (), ["a"]),
        (1, 1, "x", ("b",), ["a"]),  # where else than on the one that answers?
        (1, 1, "y", ("b",), ["a", "b"]),
        (1, 6, "", (), []),
        (0, 2, "", ("c", "of old"), ["a", "c"]),
        (0, 1, "z", (), []),
    ],
)
def test_a_process_is_kept_off_where_others_have_room(
    monkeypatch: pytest.MonkeyPatch, gpus: float, processes: int, card: str, lost: tuple[str, ...], avoided: list[str]
) -> None:
    assert kept_off(monkeypatch, {"b": 1, "c": 4}, gpus, processes, {"card": card} if card else {}, lost) == avoided


def test_a_node_that_answers_is_kept_off_only_where_others_have_room_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_off(monkeypatch, {"b": 1, "c": 4}, 1, 1, {}, ("b",)) == ["a", "b"]
    assert kept_off(monkeypatch, {"b": 1, "c": 0}, 1, 1, {}, ("b",)) == ["a"]


def kept_off(
    monkeypatch: pytest.MonkeyPatch, free: dict[str, float], gpus: float, processes: int, labels: Labels, lost: Sequence[str]
) -> list[str]:
    machines = Machines(several=True)
    machines.nodes, machines._watch = NODES, Frozen(NODES)
    monkeypatch.setattr("caiflow.engine.run.on_ray.machines.free_gpus", lambda: free)  # no Ray holds such nodes here
    return machines.avoided(gpus, processes, labels, lost)


def test_an_engine_has_one_successor_after_the_other() -> None:
    assert successor(successor("engine/0")) == "engine/2"


def test_what_wants_no_gpu_is_begun_though_lost_nodes_leave_fewer_than_are_taken() -> None:
    machines = Machines(several=True)
    machines.gpus = 2.0
    engines = Engines(machines, Waits())
    assert engines.reserve(2)
    machines.gpus = 1.0  # of those that it took one is lost
    assert engines.reserve(0)
    assert not engines.reserve(1)
    engines.give_back(2)
    assert engines.reserve(1)


@pytest.mark.parametrize(("gpus", "card", "avoided"), [(1, "x", ["b"]), (4, "y", ["a", "b"]), (1, "z", ["b"])])
def test_a_process_is_kept_off_a_node_that_is_not_fit_even_where_no_other_has_room(
    monkeypatch: pytest.MonkeyPatch, gpus: float, card: str, avoided: list[str]
) -> None:
    machines = Machines(several=True)
    machines.nodes, machines._watch, machines._late = NODES[:1], Frozen(NODES), Latecomers(NODES[:1], lambda: Probe(Path(), {}))
    machines._late.unfit.add("b")
    machines._late.unasked.add("c")
    monkeypatch.setattr("caiflow.engine.run.on_ray.machines.free_gpus", lambda: {"c": 4})  # no Ray holds such nodes here
    assert machines.avoided(gpus, 1, {"card": card}) == avoided
    assert machines.room(1, {}) == 0  # silent, not fit, and not asked yet
    assert "c" not in machines.avoided(1, 1, {})  # the only one with room
