"""The engines of a run on Ray, and its GPUs: which model has which processes, who uses them, what is taken.

Owns the count of GPUs, for trainings too. What an engine's process does is in actors.py, where it may be in placing.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.actors import RayLink
from caiflow.engine.run.on_ray.controlling import Controlling
from caiflow.engine.run.on_ray.machines import Machines
from caiflow.engine.run.on_ray.nodes import refuse_impossible
from caiflow.engine.run.on_ray.placing import end, engine_gpus, engine_key, new_engine, replicas
from caiflow.engine.run.on_ray.waits import Waits


@dataclass(slots=True)
class _Engine:
    source: ModelSource
    actors: list[Any]
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
        self._gpus_used = 0.0
        self._expected = 0
        self._spare: Any = None
        self._spare_modules: Sequence[str] = ()
        self.alone = False
        self.controlling = Controlling()

    def gpus(self, source: ModelSource) -> float:
        """Return the GPUs of all engines of a model."""
        return engine_gpus(source, self._machines.nodes) * replicas(source)

    def refuse_too_large(self, source: ModelSource, label: str) -> None:
        """Raise ClusterError where the engines of a model can never run here."""
        gpus, labels = engine_gpus(source, self._machines.nodes), self._machines.labels(source.options.get("node_labels"))
        refuse_impossible(self._machines.nodes, gpus, replicas(source), label, labels)

    def links(
        self, source: ModelSource, label: str, client: str, beside: Collection[str], report: Report, *, load: bool
    ) -> list[RayLink] | None:
        """Return links to the engine of a model, given a place and loaded if need be; None while no GPU is free for it."""
        name = engine_key(source)
        if (engine := self._engines.get(name)) is None:
            self.refuse_too_large(source, label)
            if not self.reserve(self.gpus(source), beside):
                return None
            actors = [self._actor(source) for _ in range(replicas(source))]
            self._waits.watch(label, actors, engine_gpus(source, self._machines.nodes))
            engine = self._engines[name] = _Engine(source, actors, label)
        if load and engine.ready is None:
            report({"event": "engine_starting", "model": engine.label})
            engine.ready = [actor.ready.remote(source) for actor in engine.actors]
        return [RayLink(actor, source, client) for actor in engine.actors]

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
        """Tell engines what is asked of the run; yield the events of those that have become ready."""
        import ray

        self.controlling.tell((engine.label, engine.actors) for engine in self._engines.values())
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

    def _actor(self, source: ModelSource) -> Any:
        spare, labels = self._spare, self._machines.labels(source.options.get("node_labels"))
        cpus = source.options.get("num_cpus")
        if spare is not None and not cpus and not labels:
            self._spare = None
            self._prepare_spare()
            return spare
        return new_engine(engine_gpus(source, self._machines.nodes), self._machines.threads(cpus, alone=self.alone), labels)

    def _prepare_spare(self) -> None:
        if self._spare is None and self._expected > 0 and not self._machines.gpus:
            self._expected -= 1
            self._spare = new_engine(0.0, self._machines.threads(None), {})
            self._spare.warm.remote(list(self._spare_modules))

    def _close(self, name: str) -> None:
        engine = self._engines.pop(name)
        self.give_back(self.gpus(engine.source))
        for actor in engine.actors:
            end(actor)
