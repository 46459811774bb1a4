"""Trainings in several processes, begun by a cluster as a run's are, without the run around them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from caiflow.engine.operator import Job
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.engine.run.units import StepResult


class Trains(Protocol):
    """What trains in each process."""

    def train(self, job: Job) -> None:
        """Train in this process, which may be one of several; the first one saves."""


@dataclass(frozen=True)
class Together:
    """A training as work for processes of a cluster."""

    trains: Trains
    job: Job

    def run(self, report: Report) -> Mapping[str, StepResult]:
        """Train, and tell of it."""
        own = replace(self.job, log=lambda **figures: report(figures), metrics={})
        self.trains.train(own)
        return {"training": StepResult(metrics=own.metrics)}


def train_together(cluster: Cluster, trains: Trains, job: Job, room: Room) -> None:
    """Train in several processes; figures go to `job.metrics`, progress to `job.log`. Raises what the training failed of."""
    from ray import cloudpickle

    for module in {type(trains).__module__, __name__}:
        if module.startswith("support."):  # which processes of the cluster can't import
            cloudpickle.register_pickle_by_value(sys.modules[module])
    before, cluster.on_event = cluster.on_event, lambda figures: job.log(**figures) if job.log else None
    try:
        assert cluster.submit(Together(trains, replace(job, log=None)), "train", room)
        while cluster.busy():
            for finished in cluster.wait(0.2):
                if finished.error:
                    raise finished.error
                job.metrics.update(finished.results["training"].metrics)
    finally:
        cluster.on_event = before
