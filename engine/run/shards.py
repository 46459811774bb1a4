"""Chains whose rows are divided among several workers, seen as one unit: what lies between a run and its cluster.

Owns into how many shards a chain is cut, and what is told of them together. A shard whose process is lost is begun again by the
cluster, as any unit is. Knows no Ray; nothing that a chain makes depends on what is decided here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import StepError
from caiflow.engine.run.flows import FlowUnit, Joining, Made, Shard, give_up, take_up
from caiflow.engine.run.on_ray.cluster import Cluster, Finished
from caiflow.engine.run.on_ray.gangs import Room

if TYPE_CHECKING:
    from caiflow.engine.flow.outcomes import FlowStep
    from caiflow.engine.llm.base import Link
    from caiflow.engine.run.llms import Report
    from caiflow.engine.run.units import StepResult, Unit

LEAST_ROWS = 16_384
"""Rows of a shard at the least where their number isn't asked for: they take longer than a process to start."""
_SUMMED = ("done", "total", "cached", "dropped", "failed", "calls", "prompt_tokens", "completion_tokens", "tokens_per_second")


def number_of_shards(steps: Sequence[FlowStep], rows: int, nodes: int) -> int:
    """Return into how many shards a chain over so many rows is cut: as many as its steps ask for, or one for each node."""
    wanted = [step.params.resources for step in steps if step.params]
    asked = max((one.workers for one in wanted if "workers" in one.model_fields_set), default=0)
    in_flight = max((getattr(step.params, "concurrency", 0) for step in steps), default=0)
    return max(1, min(asked or nodes, rows if asked else rows // LEAST_ROWS, in_flight or rows))


def cut(rows: int, number: int) -> list[range]:
    """Return the places of each shard's rows, as even as can be."""
    return [range(rows * i // number, rows * (i + 1) // number) for i in range(number)]


@dataclass(slots=True)
class _Divided:
    """A flow in shards as it goes: the units that are under way, those still to be begun, and what the shards made."""

    flow: FlowUnit
    engines: Sequence[str]
    shards: Sequence[Shard]
    waiting: list[tuple[Unit, Room]]
    begun: list[Unit] = field(default_factory=list)
    parts: dict[int, Mapping[str, Made]] = field(default_factory=dict)
    results: dict[str, StepResult] = field(default_factory=dict)
    error: Exception | None = None
    told: dict[str, dict[int, Mapping[str, Any]]] = field(default_factory=dict)
    """What each shard last told of a step's progress."""

    def makes(self, step: str) -> bool:
        """Tell whether a step is one of its chain."""
        return step in self.flow.staged

    def joinings(self) -> list[Joining]:
        """Return what makes one of the shards, a unit for each step: side by side, on as many nodes as are free."""
        parts = [self.parts[shard.number] for shard in self.shards]
        return [Joining(self.flow, step, [part[step.name] for part in parts]) for step in self.flow.steps]

    def fail(self, error: Exception) -> None:
        """Begin nothing more, and have what is under way end soon."""
        self.error = self.error or error
        self.waiting.clear()
        give_up(self.flow, dict.fromkeys(self.flow.staged, str(error)))

    def clean(self) -> None:
        """Remove what lies beside the folders of the whole."""
        take_up(self.flow)
        for shard in self.shards:
            shard.clean()


class Sharding:
    """A cluster to which chains can be given in shards."""

    def __init__(self, cluster: Cluster, on_event: Report) -> None:
        self._cluster = cluster
        self._on_event = on_event
        self._divided: list[_Divided] = []
        self._said: dict[str, int] = {}
        cluster.on_event = self._hear

    @property
    def nodes(self) -> list[str]:
        """The nodes that offer rows a place, by their ids."""
        machines = self._cluster.machines
        off = [node.id for node in machines.up if machines.gone(node.id) or node.id in machines.unasked]
        return [node.id for node in machines.up if node.cpus and node.id not in off] or [""]

    def submit(self, flow: FlowUnit, links: Sequence[Mapping[str, Sequence[Link]]], engines: Sequence[str]) -> bool:
        """Begin a flow in a shard for each of the `links`, or whole where there is one; False while there is no room."""
        if len(links) == 1:
            return self._cluster.submit(flow, "flow", engines=engines)
        take_up(flow)
        nodes, rows = self.nodes, cut(flow.num_rows, len(links))
        group = uuid.uuid4().hex[:8]
        shards = [Shard(replace(flow, links=own), i, len(links), rows[i], group) for i, own in enumerate(links)]
        waiting: list[tuple[Unit, Room]] = [(shard, Room(node=nodes[shard.number % len(nodes)])) for shard in shards]
        divided = _Divided(flow, engines, shards, waiting)
        self._begin(divided)
        if divided.begun:
            self._divided.append(divided)
        return bool(divided.begun)

    def wait(self, timeout_s: float) -> Iterator[Finished]:
        """Wait for units to end, and yield them; one in shards once these are joined."""
        for divided in self._divided:
            self._begin(divided)
        for finished in self._cluster.wait(timeout_s):
            of = next((one for one in self._divided if any(unit is finished.unit for unit in one.begun)), None)
            whole = finished if of is None else self._go_on(of, finished)
            if whole is not None:
                yield whole

    def close(self) -> None:
        """End every process of the cluster, and leave nothing of shards behind."""
        self._cluster.close()
        for divided in self._divided:
            divided.clean()

    def _begin(self, divided: _Divided) -> None:
        while divided.waiting:
            unit, room = divided.waiting[0]
            engines = divided.engines if isinstance(unit, Shard) else ()
            if not self._cluster.submit(unit, "shard", room, engines=engines):
                return
            divided.begun.append(unit)
            del divided.waiting[0]

    def _go_on(self, divided: _Divided, finished: Finished) -> Finished | None:
        """Take in a shard, or a step joined; return the whole once it is there, or has failed."""
        divided.begun = [unit for unit in divided.begun if unit is not finished.unit]
        if finished.error is not None:
            divided.fail(finished.error)
        elif isinstance(finished.unit, Shard):
            divided.parts[finished.unit.number] = {n: one for n, one in finished.results.items() if isinstance(one, Made)}
            if len(divided.parts) == len(divided.shards):
                divided.waiting += [(joining, Room()) for joining in divided.joinings()]
        else:
            parts = divided.parts.values()
            divided.results |= {
                name: one.counted_with([part[name] for part in parts]) for name, one in finished.results.items()
            }
        self._begin(divided)
        joining = any(isinstance(unit, Joining) for unit, _ in divided.waiting)
        if divided.begun or joining:
            return None
        if divided.waiting:  # of what engines there were, nobody holds any now
            divided.fail(StepError("there is no room any more for the rest of its shards", "run again: what is done is kept"))
        self._divided.remove(divided)
        divided.clean()
        return Finished(divided.flow, {} if divided.error else divided.results, divided.error)

    def _hear(self, event: dict[str, Any]) -> None:
        """Hand on what is told; what shards tell, once for all of them."""
        number = event.pop("shard", None)
        of = next((one for one in self._divided if one.makes(event.get("step", ""))), None)
        if number is not None and event.get("event") == "log" and self._said.setdefault(event["text"], number) != number:
            return
        if number is not None and of is not None and "total" in event:
            told = of.told.setdefault(event["step"], {})
            told[number] = event
            event = together(list(told.values()))
        self._on_event(event)


def together(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the progress of a step over all its shards, of what each of them last told; what one can't say, none can."""
    found = dict(told[-1])
    for name in _SUMMED:
        found[name] = sum(one[name] or 0 for one in told)
    for name in ("busy_s", "left_s"):
        values = [one[name] for one in told]
        found[name] = None if None in values else max(values)
    found["tokens_per_second"] = found["tokens_per_second"] or None
    found["waiting"] = next(filter(None, (one["waiting"] for one in told)), None)
    return found
