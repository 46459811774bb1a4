"""Who waits for GPUs, for how long, and who has them meanwhile.

Counts and places nothing: it asks Ray what has begun.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caiflow.engine.run.on_ray.nodes import Growth

PATIENCE_S = 20.0
"""How long a process may wait for GPUs before it is said."""
_SHOWN = 120
"""Longest command of another job that is shown."""


@dataclass(frozen=True, slots=True)
class _Unplaced:
    """Processes that Ray hasn't started yet: what they are for, the GPUs each wants, and since when (`time.monotonic`)."""

    what: str
    gpus: float
    placed: Sequence[Any]
    since: float


class Waits:
    """What a cluster's processes, and its run as a whole, wait for."""

    def __init__(self, growth: Growth = Growth()) -> None:
        self._growth = growth
        self._unplaced: list[_Unplaced] = []
        self._short = self._idle_since = 0.0

    def watch(self, what: str, actors: Sequence[Any], gpus: float) -> None:
        """Have it said where processes have long been waiting for GPUs."""
        if gpus:
            placed = [actor.__ray_ready__.remote() for actor in actors]
            self._unplaced.append(_Unplaced(what, gpus, placed, time.monotonic()))

    def short(self, gpus: float) -> None:
        """Note that what is next wants more GPUs than are free; 0 where something has begun."""
        self._short = gpus
        if not gpus:
            self._idle_since = 0.0

    def unplaced(self) -> list[str]:
        """Return a sentence for each whose patience has just ended."""
        self._unplaced, said = _still_unplaced(self._unplaced, self._growth.told)
        return said

    def idle(self, there: float) -> str:
        """Return what is to be said, once, where all of the run waits for GPUs that the cluster doesn't have; else nothing."""
        self._idle_since = self._idle_since or time.monotonic()
        if not self._short or time.monotonic() - self._idle_since <= PATIENCE_S:
            return ""
        self._idle_since = float("inf")
        return f"the run waits: what is next wants {self._short:g} GPUs, the cluster has {there:g}"


def _still_unplaced(processes: Sequence[_Unplaced], may_come: str) -> tuple[list[_Unplaced], list[str]]:
    """Return those that wait within their patience, and a sentence for each whose patience has just ended."""
    import ray

    left, said = [], []
    for one in processes:
        _, missing = ray.wait(list(one.placed), num_returns=len(one.placed), timeout=0)
        if missing and time.monotonic() - one.since < PATIENCE_S:
            left.append(one)
        elif missing:
            free, total = (found().get("GPU", 0.0) for found in (ray.available_resources, ray.cluster_resources))
            held = "; ".join(filter(None, (", ".join(holders()), may_come))) or "Ray doesn't tell who has the rest"
            said.append(f"{one.what} waits for {one.gpus:g} GPUs: of the cluster's {total:g}, {free:g} are free; {held}")
    return left, said


def holders() -> list[str]:
    """Return who holds the cluster's GPUs, most first: each job by what was called, where, with how many and in what.

    Ray lists the actors alone: GPUs of tasks, and those that a placement group keeps for later, are nobody's here.
    """
    import ray
    from ray._private.state import jobs, state
    from ray.core.generated.gcs_pb2 import ActorTableData

    held: dict[str, float] = defaultdict(float)
    within: dict[str, set[str]] = defaultdict(set)
    for packed in state._connect_and_get_accessor().get_actor_table(None, "ALIVE"):
        actor = ActorTableData.FromString(packed)
        if gpus := sum(amount for name, amount in actor.required_resources.items() if _GPUS.fullmatch(name)):
            held[actor.job_id.hex()] += gpus
            within[actor.job_id.hex()].add(actor.class_name)
    called = {job["JobID"]: job for job in jobs()}
    own = ray.get_runtime_context().get_job_id()
    return [
        f"{'this run' if job == own else _caller(called.get(job, {}))} has {held[job]:g} (in {', '.join(sorted(within[job]))})"
        for job in sorted(held, key=lambda job: (-held[job], job))
    ]


_GPUS = re.compile(r"GPU(_group_[0-9a-f]+)?")
"""How Ray names the GPUs of an actor, on its own or of a placement group."""


def _caller(job: Mapping[str, Any]) -> str:
    """Return what Ray knows of a job: the command that it began with, its process and its node."""
    command = " ".join(str(job.get("Entrypoint", "")).split()) or "a job"
    shown = command if len(command) <= _SHOWN else f"{command[:_SHOWN]}..."
    return f"`{shown}` (process {job['DriverPid']} on {job['DriverIPAddress']})" if job else "a job that has ended"
