"""What a run's Ray consists of: its nodes, the cores and GPUs of those that are up, and what of them a process may use.

Places nothing, and counts nothing that is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from caiflow.engine.machine import cores
from caiflow.engine.run.on_ray.nodes import Growth, Labels, Node, Probe, alive, places, this_node
from caiflow.engine.run.on_ray.watching import Latecomers, NodeWatch, free_gpus


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
        self._late: Latecomers | None = None
        self.nodes: list[Node] = []
        """All that there ever were, but for those that came and weren't fit."""
        self.here = ""
        """The node that this process is on, by its id; empty where there is no other."""
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

    @property
    def unasked(self) -> Collection[str]:
        """The nodes that came and haven't said yet whether they are fit, by their ids."""
        return self._late.unasked if self._late else ()

    def find(self) -> None:
        """Look for the first time, now that Ray is there."""
        self.nodes = alive()
        self._began_with = _with_gpus(self.nodes)
        self._count(self.nodes)
        self._node_cpus = min((node.cpus for node in self.nodes if node.cpus), default=1.0)
        if self.several:
            self._watch = NodeWatch(self.nodes)
            self.here = this_node()
        else:
            self.cpus = self._node_cpus = min(self.cpus, float(cores()))

    def look(self) -> list[str]:
        """Return what has become of nodes since the last look, a sentence each."""
        told = self._watch.look() if self._watch else []
        told += self._late.look(self.up) if self._late else []
        if told:
            fit = [node for node in self.up if not self.unfit(node.id) and node.id not in self.unasked]
            self.nodes += [node for node in fit if node not in self.nodes]
            self._count([node for node in fit if node.id not in self.leaving])
        return [f"{said}; there are {self.gpus:g} GPUs" if self.gpus else said for said in told]

    def ask_who_comes(self, probe: Callable[[], Probe] | None) -> None:
        """Have nodes that come from now on asked what `probe` opens, before anything is begun there; nothing, without it."""
        if self._late:
            self._late.close()
        self._late = Latecomers(self.nodes, probe) if probe and self.several else None

    def unfit(self, node: str) -> bool:
        """Tell whether a node, by its id, came and isn't fit for the run."""
        return bool(self._late and node in self._late.unfit)

    def gone(self, node: str) -> bool:
        """Tell whether a node, by its id, is lost, frozen or not fit."""
        return bool(self._watch and self._watch.gone(node)) or self.unfit(node)

    def suspect(self, node: str) -> bool:
        """Tell whether a node, by its id, may be lost or frozen, or isn't fit."""
        return bool(self._watch and self._watch.suspect(node)) or self.unfit(node)

    def frozen(self, node: str) -> bool:
        """Tell whether a node, by its id, says nothing though Ray has it up."""
        return self.gone(node) and any(node == one.id for one in self.up)

    def avoided(self, gpus: float, processes: int, labels: Labels, lost: Collection[str] = ()) -> list[str]:
        """Return the nodes to keep processes off where others have room: the `lost`, those frozen, those to leave.

        Processes are kept off one that isn't fit in any case; and, only where others have that room free, off one that answers,
        on which a process was `lost`, and one that is being asked whether it is fit.
        """
        shunned = [node.id for node in self.up if node.id in self.leaving or self.gone(node.id)]
        doubtful = [n.id for n in self.up if (n.id in lost or n.id in self.unasked) and n.id not in shunned]
        if doubtful and self.room(gpus, labels, off=doubtful) >= processes:
            shunned += doubtful
        others = [node for node in self.up if node.id not in shunned and node.has(labels)]
        return shunned if places(others, gpus) >= processes else list(filter(self.unfit, shunned))

    def room(self, gpus: float, labels: Labels, own: Sequence[str] = (), off: Collection[str] = ()) -> float:
        """Return for how many processes nodes that stay, but for `off`, have room now, and where those on `own` nodes end."""
        kept_off = {*self.leaving, *self.unasked, *off}
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
        self.ask_who_comes(None)
        if self._watch:
            self._watch.close()

    def _count(self, stay: Sequence[Node]) -> None:
        self.cpus = sum(node.cpus for node in stay)
        self.gpus = sum(node.gpus for node in [*stay, *self._to_come()])

    def _to_come(self) -> list[Node]:
        came = _with_gpus([node for node in self.up if node.id not in self.unasked])
        return self._growth.to_come(max(0, came - self._began_with))


def _with_gpus(nodes: Sequence[Node]) -> int:
    return sum(node.gpus > 0 for node in nodes)
