"""Trainings divided among CPU processes, for tests of what else needs several GPUs.

accelerate divides models (FSDP) on GPUs alone; PyTorch, which does the work, divides them on CPUs as well. All that is changed
here is that accelerate takes these processes for such with GPUs, since no test machine has several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from caiflow.engine.operator import Job, ModelOperator
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from support.side_by_side import train_together


def take_cpus_for_gpus() -> None:
    """Have accelerate divide models in this process."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def begun(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = begun


DIVIDED = ("sft", "dpo", "reward")
"""The trainers that divide a model."""


class OnCpus:
    """Trainings that are divided among CPU processes, one after the other: the processes' start takes longer than each."""

    def __init__(self, trainings: Sequence[tuple[ModelOperator[Any], Job]]) -> None:
        self._trainings = [(learner, replace(job, log=None)) for learner, job in trainings]

    def run(self, cluster: Cluster, workers: int) -> list[dict[str, Any]]:
        """Train, and return the figures of each."""
        together = replace(self._trainings[0][1], metrics={})
        train_together(cluster, self, together, Room(processes=workers))
        return [together.metrics[str(place)] for place in range(len(self._trainings))]

    def train(self, job: Job) -> None:
        """Train in this process, which may be one of several."""
        take_cpus_for_gpus()
        for place, (learner, own) in enumerate(self._trainings):
            learner.train(own)
            job.metrics[str(place)] = own.metrics
