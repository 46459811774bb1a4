"""What a run's Ray consists of: its nodes, the cores and GPUs of those that are up, and what of them a process may use.

Places nothing, and counts nothing that is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from caiflow.engine.machine import cores
from caiflow.engine.run.on_ray.nodes import Growth, Labels, Node, alive, places
from caiflow.engine.run.on_ray.watching import NodeWatch, free_gpus


class Machines:
    """The nodes of a Ray; until it is there, this machine's cores.

    `several` says that nodes may come and go, and that their labels count; `growth` what an autoscaler may add. Ray begins it
    where processes want GPUs that aren't there, so what may come counts as if it were.
    """

    def __init__(self, several: bool, growth: Growth = Growth()) -> None:
        self.several = several
        self._growth = growth
        self._began_with = 0
        self._watch: NodeWatch | None = None
        self.nodes: list[Node] = []
        """All that there ever were."""
        self.cpus = self._node_cpus = float(cores())
        self.gpus = 0.0
        """Of the nodes that stay, and of those that may come."""

    @property
    def possible(self) -> Sequence[Node]:
        """All nodes that there ever were, and those that may come."""
        return [*self.nodes, *self._to_come()]

    @property
    def up(self) -> Sequence[Node]:
        """The nodes that Ray has up, frozen ones among them."""
        return self._watch.up if self._watch else self.nodes

    @property
    def leaving(self) -> Collection[str]:
        """The nodes that are to leave, by their ids."""
        return self._watch.leaving if self._watch else ()

    def find(self) -> None:
        """Look for the first time, now that Ray is there."""
        self.nodes = alive()
        self._began_with = _with_gpus(self.nodes)
        self._count(self.nodes)
        self._node_cpus = min((node.cpus for node in self.nodes if node.cpus), default=1.0)
        if self.several:
            self._watch = NodeWatch(self.nodes)
        else:
            self.cpus = self._node_cpus = min(self.cpus, float(cores()))

    def look(self) -> list[str]:
        """Return what has become of nodes since the last look, a sentence each."""
        told = self._watch.look() if self._watch else []
        if told:
            self.nodes += [node for node in self.up if node not in self.nodes]
            self._count([node for node in self.up if node.id not in self.leaving])
        return [f"{said}; there are {self.gpus:g} GPUs" if self.gpus else said for said in told]

    def gone(self, node: str) -> bool:
        """Tell whether a node, by its id, is lost or frozen."""
        return bool(self._watch and self._watch.gone(node))

    def suspect(self, node: str) -> bool:
        """Tell whether a node, by its id, may be lost or frozen."""
        return bool(self._watch and self._watch.suspect(node))

    def frozen(self, node: str) -> bool:
        """Tell whether a node, by its id, says nothing though Ray has it up."""
        return self.gone(node) and any(node == one.id for one in self.up)

    def avoided(self, gpus: float, processes: int, labels: Labels, lost: Collection[str] = ()) -> list[str]:
        """Return the nodes to keep processes off where others have room: the `lost`, those frozen, those to leave.

        A node that answers, on which a process was `lost`, is kept off only where others have that room free.
        """
        shunned = [node.id for node in self.up if node.id in self.leaving or self.gone(node.id)]
        doubtful = [node.id for node in self.up if node.id in lost and node.id not in shunned]
        if doubtful and self.room(gpus, labels, off=doubtful) >= processes:
            shunned += doubtful
        others = [node for node in self.up if node.id not in shunned and node.has(labels)]
        return shunned if places(others, gpus) >= processes else []

    def room(self, gpus: float, labels: Labels, own: Sequence[str] = (), off: Collection[str] = ()) -> float:
        """Return for how many processes nodes that stay, but for `off`, have room now, and where those on `own` nodes end."""
        kept_off = {*self.leaving, *off}
        stay = [n for n in self.up if n.id not in kept_off and not self.suspect(n.id) and n.has(labels)]
        free = free_gpus() if gpus else {}
        return places([replace(node, gpus=free.get(node.id, 0.0) + gpus * own.count(node.id)) for node in stay], gpus)

    def labels(self, wanted: Mapping[str, str] | None) -> Labels:
        """Return the labels that nodes must have, of those that are wanted; where this machine is all there is, none."""
        return (wanted if self.several else None) or {}

    def threads(self, cpus: float | None, *, alone: bool = False) -> int:
        """Return the threads of a process: no more than half of the smallest node's cores, on whichever it may run.

        One that is `alone` gets all of them but one.
        """
        most = self._node_cpus - 1 if alone else self._node_cpus // 2
        return max(1, int(cpus or max(1.0, most)))

    def close(self) -> None:
        """Look no more."""
        if self._watch:
            self._watch.close()

    def _count(self, stay: Sequence[Node]) -> None:
        self.cpus = sum(node.cpus for node in stay)
        self.gpus = sum(node.gpus for node in [*stay, *self._to_come()])

    def _to_come(self) -> list[Node]:
        return self._growth.to_come(max(0, _with_gpus(self.up) - self._began_with))


def _with_gpus(nodes: Sequence[Node]) -> int:
    return sum(node.gpus > 0 for node in nodes)
