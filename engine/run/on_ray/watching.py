"""The nodes of a cluster while work goes on: which were lost, came, are to leave, or don't answer though Ray has them up.

Asks each node's own raylet whether it lives, as Ray itself does, and takes far less time to believe that it doesn't; and nodes
that come what those before the first step were asked.
Moves nothing: what a lost node had is the cluster's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from caiflow.engine.errors import CaiflowError
from caiflow.engine.run.on_ray.nodes import ANSWER_S, Node, Probe, alive, blind, said_in

LOOK_S = 1.0
"""How often the nodes are looked at."""
FROZEN_S = 4.0
"""How long a node that answered before may say nothing before it counts as frozen; Ray waits for a minute.

Work is taken from a node only where its own process says nothing either (`Gang.cut_off`), and time in which this process was
itself held up hardly counts.
"""
SUSPECT_S = 1.5
"""How long it may say nothing before what its work would need elsewhere is begun there; nothing is taken from it yet."""
CUT_OFF_S = 10.0
"""The same where several fall silent together: it may be the way to them."""
_REFUSALS = 3
"""Looks in a row that nobody takes, after which it counts as lost: its process has ended, or the way to it is cut."""
_HEALTH = "/grpc.health.v1.Health/Check"


class NodeWatch:
    """Looks at the nodes, beginning with those that are up now; `up` are those of the last look."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.up = list(nodes)
        self._looked = time.monotonic()
        self._asked: dict[str, _Asked] = {}
        self._frozen: set[str] = set()
        self._suspect: set[str] = set()
        self.leaving: dict[str, int] = {}
        """The nodes that Ray drains: their machines are to be taken away, at a time in ms since 1970, or some time (0)."""

    def look(self) -> list[str]:
        """Return what has become of nodes since the last look, a sentence each; nothing where that was just now."""
        if time.monotonic() - self._looked < LOOK_S:
            return []
        self._looked = time.monotonic()
        before, now = {node.id: node for node in self.up}, {node.id: node for node in alive()}
        told = {gone: "has left" if gone in self.leaving else "is lost" for gone in before.keys() - now.keys()}
        said = [f"node {before[gone].told} {what}" for gone, what in told.items()]
        said += [f"node {now[new].told} has come" for new in now.keys() - before.keys()]
        for gone in self._asked.keys() - now.keys():
            self._asked.pop(gone).close()
        self.up = list(now.values())
        return said + self._announced() + self._ask()

    def _announced(self) -> list[str]:
        """Return what is to be said of nodes that are to leave, and of those that stay after all."""
        before, self.leaving = self.leaving, draining()
        new = [node for node in self.up if node.id in self.leaving and node.id not in before]
        kept = [node for node in self.up if node.id in before and node.id not in self.leaving]
        return [
            *(f"node {node.told} is to leave{_within(self.leaving[node.id])}: nothing more is begun there" for node in new),
            *(f"node {node.told} stays after all" for node in kept),
        ]

    def gone(self, node: str) -> bool:
        """Tell whether a node, by its id, is lost or frozen; no node isn't."""
        return bool(node) and (node in self._frozen or all(node != one.id for one in self.up))

    def suspect(self, node: str) -> bool:
        """Tell whether a node, by its id, may be lost or frozen."""
        return node in self._suspect or self.gone(node)

    def close(self) -> None:
        """Ask no more."""
        while self._asked:
            self._asked.popitem()[1].close()

    def _ask(self) -> list[str]:
        silent_s = {node: self._asked.setdefault(node.id, _Asked(node)).silent_s() for node in self.up if node.port}
        frozen = {node.id for node in too_silent(silent_s)}
        self._suspect = {node.id for node, waited_s in silent_s.items() if waited_s > SUSPECT_S}
        fell, before, self._frozen = frozen - self._frozen, self._frozen, frozen
        thawed = before - frozen
        return [
            *(f"node {node.told} doesn't answer any more" for node in self.up if node.id in fell),
            *(f"node {node.told} answers again" for node in self.up if node.id in thawed),
        ]


def draining() -> dict[str, int]:
    """Return the nodes that Ray drains, by id, with when they are to be gone, in ms since 1970; 0 where nobody says.

    Ray's public API tells of nodes only whether they live: this is what its own libraries ask.
    """
    from ray._private.state import GlobalState, state

    asked: GlobalState = state
    found: dict[str, int] = asked.get_draining_nodes()
    return found


def free_gpus() -> dict[str, float]:
    """Return how many GPUs nobody has, this run or another, by the ids of their nodes."""
    from ray._private.state import GlobalState, state

    asked: GlobalState = state
    return {node: has.get("GPU", 0.0) for node, has in asked.available_resources_per_node().items()}


def _within(deadline_ms: int) -> str:
    return f" within {max(0, round(deadline_ms / 1000 - time.time()))} s" if deadline_ms else ""


def too_silent(silent_s: Mapping[Node, float]) -> list[Node]:
    """Return the nodes that have said nothing for too long; longer where several fell silent together."""
    fell = [waited_s for waited_s in silent_s.values() if waited_s > 0]

    def limit_s(waited_s: float) -> float:
        together = sum(abs(waited_s - other_s) < FROZEN_S / 2 for other_s in fell)
        return CUT_OFF_S if together > 1 else FROZEN_S

    return [node for node, waited_s in silent_s.items() if waited_s > limit_s(waited_s)]


class Latecomers:
    """Nodes that come when others, the `known`, are at work: each is asked as those were, and has no work before it answered.

    `probe` opens what they are asked. One that says nothing for `patience_s` is named, once.
    """

    def __init__(self, known: Sequence[Node], probe: Callable[[], Probe], patience_s: float = ANSWER_S) -> None:
        self._patience_s = patience_s
        self._known = {node.id for node in known}
        self._probe = probe
        self._waited: dict[str, _Question] = {}
        self.unfit: set[str] = set()
        """Those that answered what they shouldn't, by their ids; to be fit they have to come again."""
        self.unasked: set[str] = set()
        """Those that haven't answered."""

    def look(self, up: Sequence[Node]) -> list[str]:
        """Ask those that are new among the nodes that are up; return what is to be said of those that have answered."""
        import ray

        new = [node for node in up if node.id not in self._known and node.id not in self._waited]
        for node in new:
            self.unasked.add(node.id)
            try:
                probe = self._probe()
            except CaiflowError:  # the store takes no mark just now: asked at the next look
                continue
            self._waited[node.id] = _Question(node, probe, probe.ask(node), time.monotonic() + self._patience_s)
        for node_id in self._waited.keys() - {node.id for node in up}:
            self._end(node_id)
        said = []
        for question in list(self._waited.values()):
            if ray.wait([question.answer], timeout=0)[0]:
                said += self._judge(question)
            elif time.monotonic() > question.due:
                self._waited[question.node.id] = question._replace(due=math.inf)
                told = f"has given no answer in {self._patience_s:g} s to what the other nodes were asked"
                said.append(f"node {question.node.told} {told}: it isn't used until it does")
        return said

    def close(self) -> None:
        """Wait for no answer any more."""
        for node_id in list(self._waited):
            self._end(node_id)

    def _judge(self, asked: _Question) -> list[str]:
        found = said_in(asked.answer)
        wrong = [*filter(None, [asked.probe.wrong(found)]), *asked.probe.without(asked.node, found)]
        self._end(asked.node.id)
        if not wrong:
            return [f"node {asked.node.told} sees the store and runs the same code: it is used", *blind([(asked.node, found)])]
        self.unfit.add(asked.node.id)
        return [f"node {asked.node.told} isn't used: it {'; it '.join(wrong)}; then start Ray there again"]

    def _end(self, node_id: str) -> None:
        self._waited.pop(node_id).probe.close()
        self.unasked.discard(node_id)
        self._known.add(node_id)


class _Question(NamedTuple):
    """What a node is being asked."""

    node: Node
    probe: Probe
    answer: Any
    due: float
    """When it is to be said that there is no answer, by the monotonic clock."""


class Silence:
    """For how long one that is asked at every look has said nothing; 0 for one that never answered: who knows why.

    Of the time between two looks no more counts than they are apart when all is well: a process that was itself stopped, or
    kept from looking, hasn't listened.
    """

    def __init__(self, now: float) -> None:
        self._looked = now
        self._spoke = False
        self._seconds = 0.0

    def after(self, now: float, *, answered: bool) -> float:
        """Take note of a look; return the seconds."""
        passed, self._looked = min(now - self._looked, 2 * LOOK_S), now
        self._spoke = self._spoke or answered
        self._seconds = 0.0 if answered or not self._spoke else self._seconds + passed
        return self._seconds


class _Asked:
    """One node's raylet, asked whether it lives."""

    def __init__(self, node: Node) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"{node.address}:{node.port}")
        self._check = self._channel.unary_unary(_HEALTH)
        self._answer: Any = None
        self._silence = Silence(time.monotonic())
        self._refused = 0

    def silent_s(self) -> float:
        """Return for how long it has said nothing, and ask again.

        Whatever it says, that it won't be asked by strangers too, is an answer; that nobody is there, said often, is silence.
        """
        import grpc

        answered = False
        if self._answer is not None and self._answer.done():
            code = self._answer.code()
            self._refused = self._refused + 1 if code == grpc.StatusCode.UNAVAILABLE else 0
            answered = code not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
            self._answer = None
        if self._answer is None:
            self._answer = self._check.future(b"", timeout=CUT_OFF_S)
        silent_s = self._silence.after(time.monotonic(), answered=answered)
        return silent_s + CUT_OFF_S * (self._refused >= _REFUSALS and silent_s > 0)

    def close(self) -> None:
        """Let go of the connection."""
        if self._answer is not None:
            self._answer.cancel()
        self._channel.close()
