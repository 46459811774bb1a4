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

from caiflow.engine.errors import first_line
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.actors import RayLink, note_move, successor
from caiflow.engine.run.on_ray.controlling import Controlling
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.engine.run.on_ray.machines import Machines
from caiflow.engine.run.on_ray.nodes import Labels, refuse_impossible
from caiflow.engine.run.on_ray.placing import answered, away_from, end, engine_gpus, engine_key, new_engine, replicas
from caiflow.engine.run.on_ray.waits import Waits
from caiflow.engine.run.on_ray.watching import CUT_OFF_S, LOOK_S

_IDLE_LOOKS = 2
"""Looks in a row at which a process that has a successor has nothing to do, after which it is ended."""


@dataclass(slots=True, eq=False)
class _Replica:
    actor: Any
    name: str
    node: str = ""
    asked: Any = None  # on which node it is
    asked_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Engine:
    source: ModelSource
    replicas: list[_Replica]
    label: str
    ready: list[Any] | None = None  # before they are to load
    users: int = 0


@dataclass(slots=True, eq=False)
class _Move:
    engine: _Engine
    old: _Replica
    new: _Replica
    ready: Any
    told: list[Any] | None = None
    """What the workers answer that heard of it; None before the successor is ready."""
    idle: Any = None
    idle_looks: int = 0


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
        self._moves: list[_Move] = []
        self._cramped: set[str] = set()  # processes of which was said that they have no room elsewhere
        self._stuck: set[str] = set()  # those that couldn't be begun there
        self.held = 0.0
        """The GPUs that work has on nodes that are to leave: they are taken, and none of those there are to be."""
        self._spare: _Replica | None = None
        self._spare_modules: Sequence[str] = ()
        self.alone = False
        self.controlling = Controlling()

    def gpus(self, source: ModelSource) -> float:
        """Return the GPUs of all engines of a model."""
        return engine_gpus(source, self._machines.possible) * replicas(source)

    def gpus_of(self, names: Collection[str]) -> float:
        """Return the GPUs of the engines with these keys."""
        return sum(self.gpus(engine.source) for name, engine in self._engines.items() if name in names)

    def room(self, source: ModelSource) -> Room:
        """Return what the engines of a model want."""
        return Room(engine_gpus(source, self._machines.possible), None, replicas(source), self._labels(source))

    def refuse_too_large(self, source: ModelSource, label: str) -> None:
        """Raise ClusterError where the engines of a model can never run here."""
        room = self.room(source)
        refuse_impossible(self._machines.possible, room.gpus, room.processes, label, room.labels)

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
            self._waits.watch(label, [one.actor for one in begun], engine_gpus(source, self._machines.possible))
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

    def loading(self, names: Collection[str]) -> bool:
        """Tell whether an engine, by its key, was asked to load and has neither loaded nor failed to."""
        return any(self._engines[name].ready for name in names if name in self._engines)

    def free(self, keep: Collection[str]) -> None:
        """Close the engines that nobody uses now and that aren't in `keep`."""
        for name in [name for name, engine in self._engines.items() if not engine.users and name not in keep]:
            self._close(name)

    def expect(self, number: int, modules: Sequence[str]) -> None:
        """Keep an engine process ready, imports done, for each of so many engines more, one at a time."""
        self._expected, self._spare_modules = self._expected + number, modules
        self._prepare_spare()

    def reserve(self, gpus: float, beside: Collection[str] = ()) -> bool:
        """Take GPUs, closing idle engines where they are short, but for those whose keys are in `beside`."""
        idle = (name for name, engine in self._engines.items() if self.gpus(engine.source) and not engine.users)
        for name in [name for name in idle if name not in beside]:
            if self._has(gpus):
                break
            self._close(name)
        if self.take(gpus):
            return True
        self._waits.short(gpus)
        return False

    def take(self, gpus: float) -> bool:
        """Take GPUs that are free now, and close nothing for them; False where they are short."""
        if not self._has(gpus):
            return False
        self._gpus_used += gpus
        return True

    def _has(self, gpus: float) -> bool:
        """Tell whether so many GPUs are free; none are, even where lost nodes leave fewer than are taken."""
        return gpus <= max(self._free(), 0.0)

    def give_back(self, gpus: float) -> None:
        """Return GPUs that were taken."""
        self._gpus_used -= gpus

    def look(self, workers: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Tell engines what is asked of the run; yield the events of those that have become ready or are begun elsewhere.

        `workers` may ask them, and hear of engines that move.
        """
        import ray

        self.controlling.tell((engine.label, [one.actor for one in engine.replicas]) for engine in self._engines.values())
        for said in (*self._begin_elsewhere(), *self._go_on(workers)):
            yield {"event": "log", "text": said}
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

    def _begin_elsewhere(self) -> Iterator[str]:
        """Begin the engines of frozen nodes elsewhere, where there is room: Ray would wait for a minute before it did.

        Those of nodes that are to leave are begun elsewhere beside what is there.
        """
        if not self._machines.several or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        for engine in self._engines.values():
            for place, one in enumerate(engine.replicas):
                silent_s = _find(one)
                if any(one in (move.old, move.new) for move in self._moves):
                    continue
                if one.node in self._machines.leaving:
                    yield from self._begin_move(engine, one)
                elif self._cut_off(engine, one, silent_s):
                    engine.replicas[place] = begun = self._new(engine.source, successor(one.name))
                    end(one.actor)
                    if engine.ready is not None:
                        engine.ready.append(begun.actor.ready.remote(engine.source))
                    why = "isn't fit" if self._machines.unfit(one.node) else "doesn't answer"
                    yield f"{engine.label}: its engine's node {why}; another is begun elsewhere"

    def _cut_off(self, engine: _Engine, one: _Replica, silent_s: float) -> bool:
        """Tell whether a process is lost to its node: frozen with it, or put there by Ray before it was found not to be fit."""
        if self._machines.unfit(one.node):
            return True
        return silent_s > CUT_OFF_S and self._machines.frozen(one.node) and bool(self._avoided(engine.source))

    def _begin_move(self, engine: _Engine, one: _Replica) -> Iterator[str]:
        """Begin the successor of a process whose node is to leave, where a GPU is free for it."""
        gpus = engine_gpus(engine.source, self._machines.possible)
        if one.name in self._stuck:
            return
        if not self.take(gpus):
            if one.name not in self._cramped:
                yield f"{engine.label} stays there as long as it can: no GPU is free for it elsewhere"
            self._cramped.add(one.name)
            return
        new = self._new(engine.source, successor(one.name))
        ready = new.actor.ready.remote(engine.source) if engine.ready is not None else new.actor.node.remote()
        self._moves.append(_Move(engine, one, new, ready))
        yield f"{engine.label} is begun on another node, before its own is gone"

    def _go_on(self, workers: Sequence[Any]) -> Iterator[str]:
        """Go on with moves: to the successor once it is ready, and from the old one once nobody asks it any more."""
        import ray

        for move in list(self._moves):
            if move.told is not None:
                if self._left(move):
                    self._over(move, move.old)
                    yield f"{move.engine.label} has left the node that it was on"
            elif ray.wait([move.ready], timeout=0)[0]:
                try:
                    ray.get(move.ready)
                except Exception as error:  # whatever it is, the one that is there goes on
                    self._stuck.add(move.old.name)
                    self._over(move, move.new)
                    yield f"{move.engine.label} can't be begun on another node: {first_line(error)}"
                    continue
                note_move(move.old.name)
                move.engine.replicas[move.engine.replicas.index(move.old)] = move.new
                move.told = [worker.moved.remote(move.old.name) for worker in workers]
                yield f"{move.engine.label} is ready on another node, and asked there from now on"

    def _left(self, move: _Move) -> bool:
        """Tell whether all have heard of a move, and the old process has answered what it was asked, or is gone."""
        import ray

        if move.told and ray.wait(move.told, num_returns=len(move.told), timeout=0)[1]:
            return False
        if move.idle is None:
            move.idle = move.old.actor.idle.remote()
        elif ray.wait([move.idle], timeout=0)[0]:
            move.idle_looks = 0 if answered(move.idle) == "False" else move.idle_looks + 1
            move.idle = None
        return move.idle_looks >= _IDLE_LOOKS

    def _over(self, move: _Move, ends: _Replica) -> None:
        self._moves.remove(move)
        end(ends.actor)
        self.give_back(engine_gpus(move.engine.source, self._machines.possible))

    def _free(self) -> float:
        """Return how many GPUs are free on the nodes that stay."""
        there = [(e, one) for e in self._engines.values() for one in e.replicas if one.node in self._machines.leaving]
        there += [(move.engine, move.old) for move in self._moves if move.told is not None]
        held = sum(engine_gpus(engine.source, self._machines.possible) for engine, _ in there)
        return self._machines.gpus - self._gpus_used + self.held + held

    def _begun(self, source: ModelSource) -> _Replica:
        """Begin the process of an engine, which isn't to load yet, or take the one that is ready."""
        if self._spare is None or source.options.get("num_cpus") or self._labels(source):
            return self._new(source, _name())
        spare, self._spare = self._spare, None
        self._prepare_spare()
        return spare

    def _new(self, source: ModelSource, name: str) -> _Replica:
        gpus = engine_gpus(source, self._machines.possible)
        threads = self._machines.threads(source.options.get("num_cpus"), alone=self.alone)
        return _Replica(new_engine(gpus, threads, away_from(self._avoided(source), self._labels(source)), name), name)

    def _avoided(self, source: ModelSource) -> list[str]:
        """Return the nodes to keep an engine off, by their ids."""
        return self._machines.avoided(engine_gpus(source, self._machines.possible), 1, self._labels(source))

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
        for move in [move for move in self._moves if move.engine is engine]:
            self._over(move, move.new if move.told is None else move.old)
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
