"""The processes that carry out one unit: one, or a training's workers side by side, on as many nodes as it takes.

Owns how they are placed together, begun, and told apart when some fail. Counts no GPUs: what is free is the cluster's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caiflow.engine.run.on_ray.nodes import Labels
from caiflow.engine.run.on_ray.placing import answered, away_from, end, new_worker
from caiflow.engine.run.units import StepResult, Unit

GRACE_S = 15.0
"""How long the others may take to end once one has failed: those that lost a peer fail before Ray knows of the peer's end."""
SILENT_S = 2.0
"""How long a process on a node that seems gone has to say nothing, too."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a unit wants: processes of so many GPUs and CPU cores each (None: what is best), on nodes with these labels."""

    gpus: float = 0.0
    cpus: float | None = None
    processes: int = 1
    labels: Labels = field(default_factory=dict)
    node: str = ""
    """The node, by its id, that one process is to be on; any will do where that is gone."""

    @property
    def all_gpus(self) -> float:
        """The GPUs of all its processes."""
        return self.gpus * self.processes


class Gang:
    """Processes that carry out a unit; several share one placement group where they have GPUs: they begin all, or none."""

    def __init__(self, room: Room, threads: int, avoided: Collection[str] = ()) -> None:
        self._group = None
        self._wanted = room.node
        labels = {**room.labels, "ray.io/node-id": room.node} if room.node else dict(away_from(avoided, room.labels))
        places: list[Mapping[str, Any]] = [{"label_selector": labels}] * room.processes
        if room.processes > 1:
            places = [{"label_selector": labels, "scheduling_strategy": "SPREAD"}] * room.processes
        if room.processes > 1 and room.gpus:
            places = self._grouped(room, labels)
        made = [new_worker(room.gpus, threads, place) for place in places]
        self.actors, self._where = [actor for actor, _ in made], [where for _, where in made]
        self._work: list[Any] = []
        self.awaited: list[Any] = []
        """The work that isn't known to have ended."""
        self._warm: list[Any] = []
        self._failed_at = 0.0
        self._asked: dict[int, tuple[Any, float]] = {}

    @property
    def first(self) -> Any:
        """The process that reports and saves."""
        return self.actors[0]

    @property
    def nodes(self) -> list[str]:
        """The node of each process, by its id; for one that hasn't begun the node that it is to be on, empty for any."""
        return [answered(where) or self._wanted for where in self._where]

    def warm(self, modules: Sequence[str]) -> None:
        """Have them import ahead of need what takes seconds."""
        self._warm = [actor.warm.remote(list(modules)) for actor in self.actors]

    def ready(self) -> bool:
        """Tell whether all have begun, and imported what they were to."""
        import ray

        return not ray.wait(self._warm, num_returns=len(self._warm), timeout=0)[1]

    def broken(self) -> bool:
        """Tell whether one was lost before it had any work."""
        return any(map(_failure, self._warm))

    def begin(self, unit: Unit) -> None:
        """Have them carry out a unit; several meet first."""
        seats = [actor.meet.remote() for actor in self.actors] if len(self.actors) > 1 else []
        self._work = [actor.run.remote(unit, mine, *seats) for mine, actor in enumerate(self.actors)]
        self.awaited = list(self._work)

    def over(self) -> bool:
        """Tell whether the work is done, or has failed and the others have had the time to say why."""
        import ray

        ended, self.awaited = ray.wait(self._work, num_returns=len(self._work), timeout=0)
        if not self.awaited:
            return True
        if not self._failed_at and any(_failure(work) for work in ended):
            self._failed_at = time.monotonic()
        return bool(self._failed_at) and time.monotonic() - self._failed_at > GRACE_S

    @property
    def doubtful(self) -> list[str]:
        """The nodes of processes that go on though others have failed: it may be the loss of one that those failed of."""
        if not self._failed_at:
            return []
        return [node for node, work in zip(self.nodes, self._work, strict=True) if node and work in self.awaited]

    def result(self) -> Mapping[str, StepResult]:
        """Return what the first process has made, with the counts of all; raise what they failed of, a loss before the rest."""
        import ray

        failures = [failure for work in self._work if (failure := _failure(work))]
        if failures:
            raise next(filter(_is_loss, failures), failures[0])
        made, *others = ray.get(self._work)
        return {name: one.counted_with([other[name] for other in others if name in other]) for name, one in made.items()}

    def cut_off(self, gone: Callable[[str], bool]) -> bool:
        """Tell whether nodes that are `gone` keep the work from going on: their processes say nothing either."""
        silent = [self._silent(seat) for seat in range(len(self.actors))]
        return any(quiet and gone(node) for quiet, node in zip(silent, self.nodes, strict=True))

    def lost_on(self, gone: Callable[[str], bool]) -> list[str]:
        """Return the nodes to avoid: those that are gone, else those of the processes that were lost."""
        nodes = self.nodes
        lost = [node for node, work in zip(nodes, self._work, strict=True) if (why := _failure(work)) and _is_loss(why)]
        return list(dict.fromkeys([node for node in nodes if gone(node)] or [node for node in lost if node]))

    def end(self) -> None:
        """End the processes for good, wherever they are."""
        for actor in self.actors:
            end(actor)
        if self._group is not None:
            from ray.util import remove_placement_group

            remove_placement_group(self._group)
            self._group = None

    def _silent(self, seat: int) -> bool:
        """Ask a process whether it lives; tell whether it has left that unanswered for long."""
        import ray

        asked, since = self._asked.get(seat, (None, 0.0))
        if asked is None or answered(asked):
            since = time.monotonic()
        if asked is None or ray.wait([asked], timeout=0)[0]:  # it may have failed: that is no answer
            asked = self.actors[seat].node.remote()
        self._asked[seat] = asked, since
        return time.monotonic() - since > SILENT_S

    def _grouped(self, room: Room, labels: Labels) -> list[Mapping[str, Any]]:
        """Return the places of processes with GPUs, on as few nodes as have them."""
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

        wanted: list[dict[str, float]] = [{"GPU": room.gpus}] * room.processes
        group = self._group = placement_group(wanted, "PACK", bundle_label_selector=[dict(labels)] * room.processes)
        return [{"scheduling_strategy": In(group, placement_group_bundle_index=seat)} for seat in range(room.processes)]


def _failure(work: Any) -> Exception | None:
    """Return what ended work that failed; None for what is done or goes on."""
    import ray
    import ray.exceptions as ray_errors

    try:
        ray.get(work, timeout=0)
    except ray_errors.GetTimeoutError:
        return None
    except ray_errors.RayTaskError as failure:
        unmet = isinstance(failure.cause, ray_errors.RayActorError)  # it couldn't meet one that was lost
        why: Exception = failure.cause if unmet else failure
        return why
    except Exception as failure:
        return failure
    return None


def _is_loss(failure: Exception) -> bool:
    import ray.exceptions as ray_errors

    return not isinstance(failure, ray_errors.RayTaskError)
