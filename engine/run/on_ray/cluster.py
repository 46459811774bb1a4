"""Ray: starts it quietly, places workers and engines on it, and leaves nothing behind.

Owns processes and GPUs; what runs in them is in actors.py. Nothing else knows Ray. Knows units and engines, never a spec.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.actors import RayLink
from caiflow.engine.run.on_ray.deaths import death, raised
from caiflow.engine.run.on_ray.engines import Engines
from caiflow.engine.run.on_ray.entering import QUIET, enter, lock_out_others, own_signals, refuse_silence, session_folder
from caiflow.engine.run.on_ray.gangs import Gang, Room
from caiflow.engine.run.on_ray.machines import Machines
from caiflow.engine.run.on_ray.moving import Moves, Running
from caiflow.engine.run.on_ray.nodes import Growth, Needed, Probe, refuse_impossible, refuse_strangers, refuse_unseen
from caiflow.engine.run.on_ray.reaper import watch
from caiflow.engine.run.on_ray.waits import Waits
from caiflow.engine.run.units import StagingUnit, StepResult, Unit

_ANY = Room()
WORKER_TRIES = 3
"""How often a unit is begun again when its process dies; the ledger and the checkpoints keep what was done."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A unit that came to its end: results by step, or the error that ended it."""

    unit: Unit
    results: Mapping[str, StepResult] = field(default_factory=dict)
    error: Exception | None = None


class Cluster:
    """Workers and engines on Ray, started when first needed.

    Raises:
        ClusterError: Ray can't be started here, or the cluster at `address` can't be reached.
    """

    def __init__(self, address: str | None = None, growth: Growth = Growth()) -> None:
        self._address = address
        self._temp: Path | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._running: list[Running] = []
        self._idle: dict[str, list[Gang]] = {}
        self._waits = Waits(growth)
        self.machines = Machines(address is not None, growth)
        self.engines = Engines(self.machines, self._waits)
        self._moves = Moves(self.machines, self.engines, self._waits, self._gang)
        self.started = False
        self.on_event: Report = lambda _: None

    def start(self) -> None:
        """Start Ray on this machine, or connect to `address`."""
        if self.started:
            return
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        if self._address is None:
            lock_out_others()
            self._temp = session_folder(f"{_PREFIX}{os.getpid()}-")
            self._reaper = watch(self._temp)
        else:
            refuse_silence(self._address)
        enter(self._address, self._temp, self.on_event)
        self.machines.find()
        self.started = True

    def refuse_unfit(self, home: Path, operators: Mapping[str, str], models: Sequence[Needed] = ()) -> None:
        """Raise where nodes don't see the store at `home`, run other code (`operators`: others' modules), or lack `models`.

        Tells where the store's locks don't hold. Nodes that come later are asked the same; those that aren't fit are named
        and not used.

        Raises:
            ClusterError: names the nodes.
        """
        self.machines.ask_who_comes(None)
        self._tell(refuse_strangers(self.machines.nodes, home, operators, models))
        self.machines.ask_who_comes(lambda: Probe(home, operators, models))

    def refuse_too_large(self, what: str, room: Room) -> None:
        """Raise ClusterError where `what` wants more than there can ever be here."""
        refuse_impossible(self.machines.possible, room.gpus, room.processes, what, self.machines.labels(room.labels))

    def engine(
        self, source: ModelSource, label: str, client: str, beside: Sequence[str] = (), *, load: bool = True
    ) -> list[RayLink] | None:
        """Return links to the engine of a model, given a place and loaded if need be; None while no GPU is free for it.

        Engines whose keys are in `beside` are asked together with it, and aren't closed for it.
        """
        return self.engines.links(source, label, client, beside, self.on_event, load=load)

    def warm(self, pool: str, modules: Sequence[str]) -> None:
        """Start a worker ahead of need, and let it import."""
        gang = Gang(Room(), self.machines.threads(None))
        gang.warm(modules)
        self._idle.setdefault(_HOME[pool], []).append(gang)

    def submit(self, unit: Unit, pool: str, room: Room = _ANY, *, engines: Sequence[str] = ()) -> bool:
        """Begin a unit in a worker, or in several; False while there is no room for it.

        One that reads files is carried out on this node, where they were seen, unless `room` says where.
        """
        if room == _ANY and isinstance(unit, StagingUnit) and unit.reads_files:
            room = Room(node=self.machines.here)
        if sum(1 for running in self._running if running.pool == pool) >= self._limit(pool):
            return False
        if pool == "flow" and self._soon_idle(engines):
            return False
        if not self.engines.reserve(room.all_gpus, engines):
            return False
        gang = self._take_workers(pool, room)
        self.engines.used(engines, 1)
        self._waits.watch("a training" if pool == "train" else "a step", gang.actors, room.gpus)
        gang.begin(unit)
        self._running.append(Running(unit, gang, pool, room, list(engines)))
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
            self._tell([self._waits.idle(self.machines.gpus)])
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

        self.machines.close()
        self.engines.close()
        for running in self._running:
            self._moves.forget(running)
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
            events: Sequence[dict[str, Any]] = ()
            with contextlib.suppress(Exception):  # a dead worker shows in its own reference
                events = ray.get(told)
            for event in events:
                with contextlib.suppress(OSError):  # a disk that takes no progress ends no run: it may in a moment
                    self.on_event(event)
        self._look()
        self._tell(self._waits.unplaced())
        for event in self.engines.look([running.gang.first for running in self._running]):
            self.on_event(event)

    def _look(self) -> None:
        """Tell what has become of nodes; end what says nothing on those that are gone, so that it is begun again."""
        self._tell(self.machines.look())
        self._hold()
        for running in self._running:
            if running.gang.cut_off(self.machines.gone) or any(map(self.machines.unfit, running.gang.nodes)):
                running.gang.end()
            elif not running.gang.over():  # what it has made is about to be taken in
                self._tell(self._moves.look(running))
        self._hold()  # some may have moved

    def _hold(self) -> None:
        """Say how many GPUs of nodes that are to leave are in use yet."""
        leaving = self.machines.leaving
        self.engines.held = sum(one.room.gpus for one in self._running if leaving for node in one.gang.nodes if node in leaving)

    def _tell(self, said: Iterable[str]) -> None:
        for text in filter(None, said):
            self.on_event({"event": "log", "text": text})

    def _finish(self, running: Running) -> Finished | None:
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
        gpus = min(running.room.all_gpus + self.engines.gpus_of(running.engines), self.machines.gpus)  # they may take turns
        results = {name: replace(one, gpus=gpus) for name, one in results.items()}
        self._running.remove(running)
        self._moves.forget(running)
        self.engines.used(running.engines, -1)
        self._release(running)
        return Finished(running.unit, results, error)

    def _begin_again(self, running: Running, why: str) -> None:
        """Begin a unit of which a process is lost in others, on other nodes where those have the room."""
        running.tries += 1
        self._moves.go_on(running, running.gang.lost_on(self.machines.gone))
        self.on_event({"event": "log", "text": f"a worker died and its work goes on in another: {why}"})

    def _release(self, running: Running) -> None:
        if running.room.gpus or running.room.processes > 1:
            running.gang.end()  # the only way to give all of a GPU's memory back, and to have no place among others any more
            self.engines.give_back(running.room.all_gpus)
        else:
            self._idle.setdefault(_HOME[running.pool], []).append(running.gang)

    def _soon_idle(self, engines: Sequence[str]) -> bool:
        """Tell whether rows may as well wait for the process of a table, since their engine still loads.

        On this machine alone a second process would import for two seconds on the cores that the engine loads on.
        """
        busy = any(running.pool == "table" for running in self._running) and not self._idle.get("rows")
        return busy and not self.machines.several and not self.machines.gpus and self.engines.loading(engines)

    def _limit(self, pool: str) -> int:
        """Return how many units of a pool may run at once: a trainer uses some cores, a table operator at least two."""
        if pool in ("flow", "shard") or (pool == "train" and self.machines.gpus):
            return 1024 if pool == "shard" else 64
        return max(1, int(self.machines.cpus // max(2 if pool == "table" else 1, self.machines.threads(None))))

    def _take_workers(self, pool: str, room: Room) -> Gang:
        idle = self._idle.get(_HOME[pool], [])
        for gang in [gang for gang in idle if room in (_ANY, Room(node=gang.nodes[0]))]:
            idle.remove(gang)
            if not (self.machines.gone(gang.nodes[0]) or gang.nodes[0] in self.machines.leaving):
                return gang
        return self._gang(pool, room)

    def _gang(self, pool: str, room: Room, lost: Collection[str] = ()) -> Gang:
        labels = self.machines.labels(room.labels)
        threads = self.machines.threads(room.cpus) if pool == "train" else 1
        shunned = room.node in lost or room.node in self.machines.leaving or self.machines.gone(room.node)
        room = replace(room, labels=labels, node="" if shunned else room.node)
        return Gang(room, threads, self.machines.avoided(room.gpus, room.processes, labels, lost))


_HOME = {"table": "rows", "flow": "rows", "shard": "rows", "train": "train"}  # where idle workers wait
_PREFIX = "caiflow-ray-"
