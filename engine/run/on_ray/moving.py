"""Work whose node is to leave, or has fallen silent: it goes on elsewhere before it must, or what it will need is begun there.

Owns the processes that are begun ahead, and how work goes over to others. When it is lost, the cluster says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from caiflow.engine.run.on_ray.engines import Engines
from caiflow.engine.run.on_ray.gangs import Gang, Room
from caiflow.engine.run.on_ray.machines import Machines
from caiflow.engine.run.on_ray.waits import Waits
from caiflow.engine.run.units import StagingUnit, Unit, staged_anew


@dataclass(slots=True)
class Running:
    """A unit that is under way, in which processes, and those begun ahead of need."""

    unit: Unit
    gang: Gang
    pool: str
    room: Room
    engines: list[str]
    tries: int = 1
    begun: int = 1
    """How often its work was begun: by each try, and wherever it moved to."""
    asked: Any = None
    """Progress that it was asked for and hasn't told yet: what it tells it tells once, however late."""
    ahead: Gang | None = None
    """Where it will go on, if it must; its GPUs are taken beside those of `gang`."""
    kept: Callable[[], bool] | None = None
    """Tells whether what it has done is kept; None while nobody asked for that."""
    suspected: bool = False
    fails: bool = False
    """Whether processes begun ahead of need came to nothing: none are begun any more."""
    said: set[str] = field(default_factory=set)


class Moves:
    """Where the units of a run go on; `begin` starts processes in a pool, as a room says, off some nodes."""

    def __init__(
        self, machines: Machines, engines: Engines, waits: Waits, begin: Callable[[str, Room, Collection[str]], Gang]
    ) -> None:
        self._machines = machines
        self._engines = engines
        self._waits = waits
        self._begin = begin

    def look(self, running: Running) -> Iterator[str]:
        """Move a unit off a node that is to leave, or make ready for it elsewhere where one is silent; yield what to say."""
        unit = running.unit
        if not (self._machines.several and isinstance(unit, StagingUnit)):
            return
        self._mend_ahead(running)
        nodes = running.gang.nodes
        if any(node in self._machines.leaving for node in nodes):
            yield from (f"{unit.told} {said}" for said in self._leave(running, unit))
        elif not self._silent(running):
            self.forget(running)  # the node answers again, or stays after all
        elif unit.modules and not running.suspected:
            running.suspected = True  # one false alarm is enough
            self._begin_ahead(running, unit)

    def go_on(self, running: Running, lost: Collection[str] | None = None) -> None:
        """Have a unit go on in other processes, off the nodes that are lost, where it was; those that it has are ended."""
        running.gang.end()  # some may live where they can't be reached
        self._mend_ahead(running)
        ahead, running.ahead = running.ahead, None
        if ahead is not None:
            self._engines.give_back(running.room.all_gpus)
        running.gang = ahead or self._begin(running.pool, running.room, lost or ())
        running.begun, running.asked, running.suspected = running.begun + 1, None, False
        self._waits.watch("what is begun again", running.gang.actors, running.room.gpus)
        self._take_up(running)
        unit, begun = running.unit, running.begun
        if lost is None and isinstance(unit, StagingUnit):
            running.gang.begin(unit.anew(begun))  # no claim of its processes outlives them
        else:
            running.gang.begin(staged_anew(unit, begun))

    def forget(self, running: Running) -> None:
        """End what was begun ahead, and have a unit go on where it is."""
        self._end_ahead(running)
        self._take_up(running)

    def _leave(self, running: Running, unit: StagingUnit) -> Iterator[str]:
        """Move a unit that has processes on nodes that are to leave one step further."""
        if running.kept is not None:
            if running.kept():
                self.go_on(running)
                yield "goes on on another node, before its own is gone"
            return
        if self._paused:
            return
        if running.ahead is None:
            if why := self._stays(running, unit):
                yield from () if why in running.said else (f"stays there as long as it can: {why}",)
                running.said.add(why)
                return
            self._begin_ahead(running, unit)
        if running.ahead is None or running.ahead.ready():
            running.kept = unit.lay_down()

    def _stays(self, running: Running, unit: StagingUnit) -> str:
        """Return why a unit can't go on elsewhere; nothing where it can."""
        if not unit.moves:
            return "it would have to begin anew"
        return "" if self._fits(running, running.gang.nodes) else "no other node has room for it"

    def _begin_ahead(self, running: Running, unit: StagingUnit) -> None:
        """Begin the processes in which a unit will go on, where there is room for them beside those that it has."""
        if not running.fails and self._fits(running) and self._engines.take(running.room.all_gpus):
            doubtful = running.gang.doubtful if self._fits(running, off=running.gang.doubtful) else []
            silent = filter(self._machines.suspect, running.gang.nodes)
            running.ahead = self._begin(running.pool, running.room, [*silent, *doubtful])
            running.ahead.warm(unit.modules)
            self._waits.watch("what is to move", running.ahead.actors, running.room.gpus)

    def _silent(self, running: Running) -> list[str]:
        """Return the nodes of a unit that may be lost: sooner than Ray does, its own processes say so that have failed."""
        return [*filter(self._machines.suspect, running.gang.nodes), *running.gang.doubtful]

    def _fits(self, running: Running, own: Sequence[str] = (), off: Collection[str] = ()) -> bool:
        """Tell whether other nodes, but for `off`, have room for all of a unit, and where its processes on `own` nodes end."""
        room = running.room
        return self._machines.room(room.gpus, self._machines.labels(room.labels), own, off) >= room.processes

    def _mend_ahead(self, running: Running) -> None:
        """Forget what was begun ahead where it was lost before it had any work, or is where nothing stays."""
        if running.ahead is None:
            return
        running.fails = running.fails or running.ahead.broken()
        if running.fails or any(self._machines.gone(node) or node in self._machines.leaving for node in running.ahead.nodes):
            self._end_ahead(running)

    def _end_ahead(self, running: Running) -> None:
        if running.ahead is not None:
            running.ahead.end()
            running.ahead = None
            self._engines.give_back(running.room.all_gpus)

    @property
    def _paused(self) -> bool:
        return self._engines.controlling.controls.paused

    def _take_up(self, running: Running) -> None:
        if running.kept is not None and isinstance(running.unit, StagingUnit):
            running.kept = None
            running.unit.take_up(self._paused)
