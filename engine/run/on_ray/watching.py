"""The nodes of a cluster while work goes on: which were lost, came, or have stopped answering though Ray has them up.

Asks each node's own raylet whether it lives, as Ray itself does, and takes a third of the time to believe that it doesn't.
Moves nothing: what a lost node had is the cluster's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from caiflow.engine.run.on_ray.nodes import Node, alive

LOOK_S = 2.0
"""How often the nodes are looked at."""
FROZEN_S = 10.0
"""How long a node that answered before may say nothing before it counts as frozen; Ray waits for a minute."""
_REFUSALS = 2
"""Looks in a row that nobody takes, after which it counts as lost: its process has ended, or the way to it is cut."""
_HEALTH = "/grpc.health.v1.Health/Check"


class NodeWatch:
    """Looks at the nodes, beginning with those that are up now; `up` are those of the last look."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.up = list(nodes)
        self._looked = time.monotonic()
        self._asked: dict[str, _Asked] = {}
        self._frozen: set[str] = set()

    def look(self) -> list[str]:
        """Return what has become of nodes since the last look, a sentence each; nothing where that was just now."""
        if time.monotonic() - self._looked < LOOK_S:
            return []
        self._looked = time.monotonic()
        before, now = {node.id: node for node in self.up}, {node.id: node for node in alive()}
        said = [f"node {before[gone].told} is lost" for gone in before.keys() - now.keys()]
        said += [f"node {now[new].told} has come" for new in now.keys() - before.keys()]
        for gone in self._asked.keys() - now.keys():
            self._asked.pop(gone).close()
        self.up = list(now.values())
        return said + self._ask()

    def gone(self, node: str) -> bool:
        """Tell whether a node, by its id, is lost or frozen; no node isn't."""
        return bool(node) and (node in self._frozen or all(node != one.id for one in self.up))

    def close(self) -> None:
        """Ask no more."""
        while self._asked:
            self._asked.popitem()[1].close()

    def _ask(self) -> list[str]:
        silent_s = {node: self._asked.setdefault(node.id, _Asked(node)).silent_s() for node in self.up if node.port}
        frozen = {node.id for node, waited_s in silent_s.items() if waited_s > FROZEN_S}
        fell, before, self._frozen = frozen - self._frozen, self._frozen, frozen
        thawed = before - frozen
        return [
            *(f"node {node.told} doesn't answer any more" for node in self.up if node.id in fell),
            *(f"node {node.told} answers again" for node in self.up if node.id in thawed),
        ]


class _Asked:
    """One node's raylet, asked whether it lives."""

    def __init__(self, node: Node) -> None:
        import grpc

        self._channel = grpc.insecure_channel(f"{node.address}:{node.port}")
        self._check = self._channel.unary_unary(_HEALTH)
        self._answer: Any = None
        self._answered = 0.0
        self._refused = 0

    def silent_s(self) -> float:
        """Return for how long it has said nothing, and ask again; 0 for one that never answered: who knows why.

        Whatever it says, that it won't be asked by strangers too, is an answer.
        """
        import grpc

        if self._answer is not None and self._answer.done():
            code = self._answer.code()
            self._refused = self._refused + 1 if code == grpc.StatusCode.UNAVAILABLE else 0
            if code not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                self._answered = time.monotonic()
            self._answer = None
        if self._answer is None:
            self._answer = self._check.future(b"", timeout=FROZEN_S)
        silent_s = time.monotonic() - self._answered if self._answered else 0.0
        return silent_s if self._refused < _REFUSALS else max(silent_s, FROZEN_S + 1) * (self._answered > 0)

    def close(self) -> None:
        """Let go of the connection."""
        if self._answer is not None:
            self._answer.cancel()
        self._channel.close()
