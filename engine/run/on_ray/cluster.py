"""Ray: starts it quietly, places workers and engines on it, and leaves nothing behind.

Owns processes and GPUs; what runs in them is in actors.py. Nothing else knows Ray. Knows units and engines, never a spec.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.machine import cores
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.actors import RayLink
from caiflow.engine.run.on_ray.controlling import Controlling
from caiflow.engine.run.on_ray.deaths import death, raised
from caiflow.engine.run.on_ray.entering import QUIET, enter, lock_out_others, own_signals, refuse_silence
from caiflow.engine.run.on_ray.gangs import Gang, Room
from caiflow.engine.run.on_ray.nodes import (
    Node,
    alive,
    places,
    refuse_impossible,
    refuse_strangers,
    refuse_unseen,
)
from caiflow.engine.run.on_ray.placing import end, engine_gpus, engine_key, new_engine, replicas
from caiflow.engine.run.on_ray.reaper import watch
from caiflow.engine.run.on_ray.waits import Waits
from caiflow.engine.run.on_ray.watching import NodeWatch
from caiflow.engine.run.units import StepResult, Unit, staged_anew

_ANY = Room()
WORKER_TRIES = 3
"""How often a unit is begun again when its process dies; the ledger and the checkpoints keep what was done."""


@dataclass(slots=True)
class _Engine:
    actors: list[Any]
    gpus: float
    label: str
    ready: list[Any] | None = None  # before they are to load
    users: int = 0


@dataclass(slots=True)
class _Running:
    unit: Unit
    gang: Gang
    pool: str
    room: Room
    engines: list[str]
    tries: int = 1
    asked: Any = None
    """Progress that it was asked for and hasn't told yet: what it tells it tells once, however late."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A unit that came to its end: results by step, or the error that ended it."""

    unit: Unit
    results: Mapping[str, StepResult] = field(default_factory=dict)
    error: Exception | None = None


class Cluster:
    """Workers and engines on Ray, started when first needed.

    `alone` says that one engine is all that computes in this run: it then gets every core but the rows' own.

    Raises:
        ClusterError: Ray can't be started here, or the cluster at `address` can't be reached.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._temp: Path | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._engines: dict[str, _Engine] = {}
        self._running: list[_Running] = []
        self._idle: dict[str, list[Gang]] = {}
        self._gpus_used = self.gpus = 0.0
        self._waits = Waits()
        self._nodes: NodeWatch | None = None
        self._expected = 0
        self._spare: Any = None
        self._spare_modules: Sequence[str] = ()
        self.nodes: list[Node] = []
        self.cpus = self._node_cpus = float(cores())
        self.alone = self.started = False
        self.controlling = Controlling()
        self.on_event: Report = lambda _: None

    def start(self) -> None:
        """Start Ray on this machine, or connect to `address`."""
        if self.started:
            return
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        if self._address is None:
            lock_out_others()
            self._temp = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
            self._reaper = watch(self._temp)
        else:
            refuse_silence(self._address)
        enter(self._address, self._temp, self.on_event)
        self.nodes = alive()
        self.cpus, self.gpus = sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes)
        self._node_cpus = min((node.cpus for node in self.nodes if node.cpus), default=1.0)
        if self._address is None:
            self.cpus = self._node_cpus = min(self.cpus, float(cores()))
        else:
            self._nodes = NodeWatch(self.nodes)
        self.started = True

    def refuse_unfit(self, home: Path, operators: Mapping[str, str]) -> None:
        """Raise where nodes don't see the store at `home`, or run other code (`operators`: others' modules); tell of its locks.

        Raises:
            ClusterError: names the nodes.
        """
        self._tell(refuse_strangers(self.nodes, home, operators))

    def refuse_too_large(self, what: str, room: Room) -> None:
        """Raise ClusterError where `what` wants more than there can ever be here."""
        refuse_impossible(self.nodes, room.gpus, room.processes, what, self._labels(room.labels))

    def refuse_too_large_model(self, source: ModelSource, label: str) -> None:
        """Raise where the engines of a model can never run here."""
        labels = self._labels(source.options.get("node_labels"))
        refuse_impossible(self.nodes, engine_gpus(source, self.nodes), replicas(source), label, labels)

    def all_gpus(self, source: ModelSource) -> float:
        """Return the GPUs of all engines of a model."""
        return engine_gpus(source, self.nodes) * replicas(source)

    def engine(
        self, source: ModelSource, label: str, client: str, beside: Sequence[str] = (), *, load: bool = True
    ) -> list[RayLink] | None:
        """Return links to the engine of a model, given a place and loaded if need be; None while no GPU is free for it.

        Engines whose keys are in `beside` are asked together with it, and aren't closed for it.
        """
        name = engine_key(source)
        if (engine := self._engines.get(name)) is None:
            self.refuse_too_large_model(source, label)
            if not self._reserve(self.all_gpus(source), beside):
                return None
            actors = [self._engine_actor(source) for _ in range(replicas(source))]
            self._waits.watch(label, actors, engine_gpus(source, self.nodes))
            engine = self._engines[name] = _Engine(actors, self.all_gpus(source), label)
        if load and engine.ready is None:
            self.on_event({"event": "engine_starting", "model": engine.label})
            engine.ready = [actor.ready.remote(source) for actor in engine.actors]
        return [RayLink(actor, source, client) for actor in engine.actors]

    def free(self, keep: set[str]) -> None:
        """Close the engines that nobody uses now and that aren't in `keep`."""
        for name in [name for name, engine in self._engines.items() if not engine.users and name not in keep]:
            self._close_engine(name)

    def expect_engines(self, number: int, modules: Sequence[str]) -> None:
        """Keep an engine process ready, imports done, for each of the next `number` engines, one at a time."""
        self._expected, self._spare_modules = number, modules
        self._prepare_spare()

    def warm(self, pool: str, modules: Sequence[str]) -> None:
        """Start a worker ahead of need, and let it import."""
        gang = Gang(Room(), self._threads(None))
        gang.first.warm.remote(list(modules))
        self._idle.setdefault(_HOME[pool], []).append(gang)

    def submit(self, unit: Unit, pool: str, room: Room = _ANY, *, engines: Sequence[str] = ()) -> bool:
        """Begin a unit in a worker, or in several; False while there is no room for it."""
        if sum(1 for running in self._running if running.pool == pool) >= self._limit(pool):
            return False
        if not self._reserve(room.all_gpus, engines):
            return False
        gang = self._take_workers(pool, room)
        for name in engines:
            self._engines[name].users += 1
        self._waits.watch("a training" if pool == "train" else "a step", gang.actors, room.gpus)
        gang.begin(unit)
        self._running.append(_Running(unit, gang, pool, room, list(engines)))
        self._waits.short(0.0)
        return True

    def busy(self) -> bool:
        """Tell whether any unit runs."""
        return bool(self._running)

    def wait(self, timeout_s: float) -> Iterator[Finished]:
        """Wait for units to end and yield them; hands on progress meanwhile."""
        import ray

        if not self._running:
            time.sleep(timeout_s)
            self._poll()
            self._tell([self._waits.idle(self.gpus)])
            return
        ray.wait([work for running in self._running for work in running.gang.awaited], num_returns=1, timeout=timeout_s)
        over = [running for running in self._running if running.gang.over()]
        late = any(running.asked is not None for running in over)
        for _ in range(1 + late):  # what was asked before a unit ended says nothing of its end
            self._poll(5.0 if over else 1.0)
        for running in over:
            finished = self._finish(running)
            if finished is not None:
                yield finished

    def close(self) -> None:
        """End every process this cluster started."""
        if not self.started:
            return
        import ray

        if self._nodes:
            self._nodes.close()
        for name in list(self._engines):
            self._close_engine(name)
        for gang in [running.gang for running in self._running] + [gang for idle in self._idle.values() for gang in idle]:
            gang.end()
        with own_signals():
            ray.shutdown()
        if self._temp is not None:
            shutil.rmtree(self._temp, ignore_errors=True)
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
        self.started = False

    def _poll(self, timeout_s: float = 1.0) -> None:
        import ray

        for running in self._running:
            running.asked = running.asked or running.gang.first.poll.remote()
        asked = [running.asked for running in self._running]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
        for running in [running for running in self._running if running.asked in done]:
            told, running.asked = running.asked, None
            with contextlib.suppress(Exception):  # a dead worker shows in its own reference
                for event in ray.get(told):
                    self.on_event(event)
        self._look()
        self.controlling.tell((engine.label, engine.actors) for engine in self._engines.values())
        self._tell(self._waits.unplaced())
        for engine in self._engines.values():
            ready, engine.ready = ray.wait(engine.ready, num_returns=1, timeout=0) if engine.ready else ([], engine.ready)
            for reference in ready:
                with contextlib.suppress(Exception):  # a failed load shows in the step that waits for it
                    _, kind, took = ray.get(reference)
                    self.on_event({"event": "engine_ready", "model": engine.label, "kind": kind, "seconds": round(took, 2)})

    def _look(self) -> None:
        """Tell what has become of nodes; end what says nothing on those that are gone, so that it is begun again."""
        if self._nodes is None:
            return
        for said in self._nodes.look():
            self.nodes += [node for node in self._nodes.up if node not in self.nodes]
            self.cpus, self.gpus = (sum(getattr(node, what) for node in self._nodes.up) for what in ("cpus", "gpus"))
            self.on_event({"event": "log", "text": f"{said}; there are {self.gpus:g} GPUs" if self.gpus else said})
        for running in self._running:
            if running.gang.cut_off(self._nodes.gone):
                running.gang.end()

    def _tell(self, said: Iterable[str]) -> None:
        for text in filter(None, said):
            self.on_event({"event": "log", "text": text})

    def _finish(self, running: _Running) -> Finished | None:
        import ray
        import ray.exceptions as ray_errors

        try:
            results, error = running.gang.result(), None
        except ray_errors.RayTaskError as failure:
            results, error = {}, raised(failure, failure.cause)
        except ray_errors.RayError as failure:
            why = death(failure)
            if why.again and running.tries < WORKER_TRIES:
                self._begin_again(running, why.why)
                return None
            often = f" {running.tries} times" if why.again else ""
            results, error = {}, StepError(f"its process died{often}: {why.why}", why.hint)
        try:
            refuse_unseen(results, lambda: str(ray.get(running.gang.first.place.remote())))
        except StepError as unseen:
            results, error = {}, unseen
        self._running.remove(running)
        for name in running.engines:
            if name in self._engines:
                self._engines[name].users -= 1
        self._release(running)
        return Finished(running.unit, results, error)

    def _begin_again(self, running: _Running, why: str) -> None:
        """Begin a unit of which a process is lost in others, on other nodes where those have the room."""
        room, up = running.room, self._nodes.up if self._nodes else []
        lost = running.gang.lost_on(self._nodes.gone if self._nodes else lambda _: False)
        running.gang.end()  # some may live where they can't be reached
        others = [node for node in up if node.id not in lost and node.has(self._labels(room.labels))]
        running.tries, running.asked = running.tries + 1, None
        running.gang = self._gang(running.pool, room, lost if places(others, room.gpus) >= room.processes else ())
        self._waits.watch("what is begun again", running.gang.actors, room.gpus)
        running.gang.begin(staged_anew(running.unit, running.tries))
        self.on_event({"event": "log", "text": f"a worker died and its work goes on in another: {why}"})

    def _release(self, running: _Running) -> None:
        if running.room.gpus or running.room.processes > 1:
            running.gang.end()  # the only way to give all of a GPU's memory back, and to have no place among others any more
            self._gpus_used -= running.room.all_gpus
        else:
            self._idle.setdefault(_HOME[running.pool], []).append(running.gang)

    def _limit(self, pool: str) -> int:
        """Return how many units of a pool may run at once: table operators and trainers use several cores each."""
        if pool == "flow" or (pool == "train" and self.gpus):
            return 64
        return max(1, int(self.cpus // self._threads(None)))

    def _threads(self, cpus: float | None) -> int:
        """Return the threads of a process: no more than half of the smallest node's cores, on whichever it may run."""
        return max(1, int(cpus or max(1.0, self._node_cpus // 2)))

    def _take_workers(self, pool: str, room: Room) -> Gang:
        idle = self._idle.get(_HOME[pool], [])
        while idle and room == _ANY:
            gang = idle.pop()
            if not (self._nodes and self._nodes.gone(gang.nodes[0])):
                return gang
        return self._gang(pool, room)

    def _gang(self, pool: str, room: Room, avoided: Sequence[str] = ()) -> Gang:
        threads = self._threads(room.cpus) if pool == "train" else 1
        return Gang(replace(room, labels=self._labels(room.labels)), threads, avoided)

    def _engine_actor(self, source: ModelSource) -> Any:
        spare, labels = self._spare, self._labels(source.options.get("node_labels"))
        if spare is not None and not source.options.get("num_cpus") and not labels:
            self._spare = None
            self._prepare_spare()
            return spare
        most = max(1.0, self._node_cpus - 1) if self.alone else None
        return new_engine(engine_gpus(source, self.nodes), self._threads(source.options.get("num_cpus") or most), labels)

    def _labels(self, wanted: Mapping[str, str] | None) -> Mapping[str, str]:
        """Return the labels that nodes must have, of those that are wanted; where this machine is all there is, none."""
        return (wanted if self._address else None) or {}

    def _prepare_spare(self) -> None:
        if self._spare is None and self._expected > 0 and not self.gpus:
            self._expected -= 1
            self._spare = new_engine(0.0, self._threads(None), {})
            self._spare.warm.remote(list(self._spare_modules))

    def _reserve(self, gpus: float, beside: Sequence[str] = ()) -> bool:
        """Take GPUs, closing idle engines where they are short, but for those that are needed beside it."""
        idle = (name for name, engine in self._engines.items() if engine.gpus and not engine.users)
        for name in [name for name in idle if name not in beside]:
            if self.gpus - self._gpus_used >= gpus:
                break
            self._close_engine(name)
        if self.gpus - self._gpus_used < gpus:
            self._waits.short(gpus)
            return False
        self._gpus_used += gpus
        return True

    def _close_engine(self, name: str) -> None:
        engine = self._engines.pop(name)
        self._gpus_used -= engine.gpus
        for actor in engine.actors:
            end(actor)


_HOME = {"table": "rows", "flow": "rows", "train": "train"}  # where idle workers wait: rows' serve tables and flows alike
_PREFIX = "caiflow-ray-"
