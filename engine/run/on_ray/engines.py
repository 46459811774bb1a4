"""The engines of a run on Ray, and its GPUs: which model has which processes, who uses them, what is taken.

Owns the count of GPUs, for trainings too. What an engine's process does is in actors.py, where it may be in placing.py.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.actors import RayLink, successor
from caiflow.engine.run.on_ray.controlling import Controlling
from caiflow.engine.run.on_ray.machines import Machines
from caiflow.engine.run.on_ray.nodes import Labels, refuse_impossible
from caiflow.engine.run.on_ray.placing import answered, away_from, end, engine_gpus, engine_key, new_engine, replicas
from caiflow.engine.run.on_ray.waits import Waits
from caiflow.engine.run.on_ray.watching import CUT_OFF_S, LOOK_S


@dataclass(slots=True)
class _Replica:
    actor: Any
    name: str
    node: str = ""
    asked: Any = None  # on which node it is
    asked_at: float = 0.0


@dataclass(slots=True)
class _Engine:
    source: ModelSource
    replicas: list[_Replica]
    label: str
    ready: list[Any] | None = None  # before they are to load
    users: int = 0


class Engines:
    """The engines on the machines of a run.

    `alone` says that one engine is all that computes in this run: it then gets every core but the rows' own.
    """

    def __init__(self, machines: Machines, waits: Waits) -> None:
        self._machines = machines
        self._waits = waits
        self._engines: dict[str, _Engine] = {}
        self._gpus_used = self._looked = 0.0
        self._expected = 0
        self._spare: _Replica | None = None
        self._spare_modules: Sequence[str] = ()
        self.alone = False
        self.controlling = Controlling()

    def gpus(self, source: ModelSource) -> float:
        """Return the GPUs of all engines of a model."""
        return engine_gpus(source, self._machines.nodes) * replicas(source)

    def refuse_too_large(self, source: ModelSource, label: str) -> None:
        """Raise ClusterError where the engines of a model can never run here."""
        gpus = engine_gpus(source, self._machines.nodes)
        refuse_impossible(self._machines.nodes, gpus, replicas(source), label, self._labels(source))

    def links(
        self, source: ModelSource, label: str, client: str, beside: Collection[str], report: Report, *, load: bool
    ) -> list[RayLink] | None:
        """Return links to the engine of a model, given a place and loaded if need be; None while no GPU is free for it."""
        name = engine_key(source)
        if (engine := self._engines.get(name)) is None:
            self.refuse_too_large(source, label)
            if not self.reserve(self.gpus(source), beside):
                return None
            begun = [self._begun(source) for _ in range(replicas(source))]
            self._waits.watch(label, [one.actor for one in begun], engine_gpus(source, self._machines.nodes))
            engine = self._engines[name] = _Engine(source, begun, label)
        if load and engine.ready is None:
            report({"event": "engine_starting", "model": engine.label})
            engine.ready = [one.actor.ready.remote(source) for one in engine.replicas]
        return [RayLink(one.actor, one.name, source, client) for one in engine.replicas]

    def used(self, names: Collection[str], by: int) -> None:
        """Count users of engines, by their keys: so many more, or fewer."""
        for name in names:
            if name in self._engines:
                self._engines[name].users += by

    def free(self, keep: Collection[str]) -> None:
        """Close the engines that nobody uses now and that aren't in `keep`."""
        for name in [name for name, engine in self._engines.items() if not engine.users and name not in keep]:
            self._close(name)

    def expect(self, number: int, modules: Sequence[str]) -> None:
        """Keep an engine process ready, imports done, for each of the next `number` engines, one at a time."""
        self._expected, self._spare_modules = number, modules
        self._prepare_spare()

    def reserve(self, gpus: float, beside: Collection[str] = ()) -> bool:
        """Take GPUs, closing idle engines where they are short, but for those whose keys are in `beside`."""
        idle = (name for name, engine in self._engines.items() if self.gpus(engine.source) and not engine.users)
        for name in [name for name in idle if name not in beside]:
            if self._machines.gpus - self._gpus_used >= gpus:
                break
            self._close(name)
        if self._machines.gpus - self._gpus_used < gpus:
            self._waits.short(gpus)
            return False
        self._gpus_used += gpus
        return True

    def give_back(self, gpus: float) -> None:
        """Return GPUs that were taken."""
        self._gpus_used -= gpus

    def look(self) -> Iterator[dict[str, Any]]:
        """Tell engines what is asked of the run; yield the events of those that have become ready or are begun elsewhere."""
        import ray

        self.controlling.tell((engine.label, [one.actor for one in engine.replicas]) for engine in self._engines.values())
        yield from self._begin_elsewhere()
        for engine in self._engines.values():
            ready, engine.ready = ray.wait(engine.ready, num_returns=1, timeout=0) if engine.ready else ([], engine.ready)
            for reference in ready:
                with contextlib.suppress(Exception):  # a failed load shows in the step that waits for it
                    _, kind, took = ray.get(reference)
                    yield {"event": "engine_ready", "model": engine.label, "kind": kind, "seconds": round(took, 2)}

    def close(self) -> None:
        """End them all."""
        for name in list(self._engines):
            self._close(name)

    def _begin_elsewhere(self) -> Iterator[dict[str, Any]]:
        """Begin the engines of frozen nodes elsewhere, where there is room: Ray would wait for a minute before it did."""
        if not self._machines.several or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        for engine in self._engines.values():
            for place, one in enumerate(engine.replicas):
                silent_s = _find(one)
                if silent_s > CUT_OFF_S and self._machines.frozen(one.node) and self._avoided(engine.source):
                    engine.replicas[place] = begun = self._new(engine.source, successor(one.name))
                    end(one.actor)
                    if engine.ready is not None:
                        engine.ready.append(begun.actor.ready.remote(engine.source))
                    yield {
                        "event": "log",
                        "text": f"{engine.label}: its engine's node doesn't answer; another is begun elsewhere",
                    }

    def _begun(self, source: ModelSource) -> _Replica:
        """Begin the process of an engine, which isn't to load yet, or take the one that is ready."""
        if self._spare is None or source.options.get("num_cpus") or self._labels(source):
            return self._new(source, _name())
        spare, self._spare = self._spare, None
        self._prepare_spare()
        return spare

    def _new(self, source: ModelSource, name: str) -> _Replica:
        gpus = engine_gpus(source, self._machines.nodes)
        threads = self._machines.threads(source.options.get("num_cpus"), alone=self.alone)
        return _Replica(new_engine(gpus, threads, away_from(self._avoided(source), self._labels(source)), name), name)

    def _avoided(self, source: ModelSource) -> list[str]:
        """Return the nodes to keep an engine off, by their ids."""
        return self._machines.avoided(engine_gpus(source, self._machines.nodes), 1, self._labels(source))

    def _labels(self, source: ModelSource) -> Labels:
        return self._machines.labels(source.options.get("node_labels"))

    def _prepare_spare(self) -> None:
        if self._spare is None and self._expected > 0 and not self._machines.gpus:
            self._expected -= 1
            name = _name()
            self._spare = _Replica(new_engine(0.0, self._machines.threads(None), {}, name), name)
            self._spare.actor.warm.remote(list(self._spare_modules))

    def _close(self, name: str) -> None:
        engine = self._engines.pop(name)
        self.give_back(self.gpus(engine.source))
        for one in engine.replicas:
            end(one.actor)


def _name() -> str:
    """Return a name for the first process of an engine."""
    return f"{uuid.uuid4().hex}/0"


def _find(one: _Replica) -> float:
    """Ask a process on which node it is, where Ray may have begun it again; return for how long it hasn't said so."""
    import ray

    if one.asked is not None and ray.wait([one.asked], timeout=0)[0]:
        one.node, one.asked = answered(one.asked), None
    if one.asked is None:
        one.asked, one.asked_at = one.actor.node.remote(), time.monotonic()
    return time.monotonic() - one.asked_at
