"""What the operators that train have in common: one process, or several that share their gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

from caiflow.engine.operator import Job, ModelOperator
from caiflow.engine.training.params import TrainingParams

P = TypeVar("P", bound=TrainingParams)


class TrainingOperator(ModelOperator[P]):
    """Base of the operators that train: `learn` runs in one process, or in each of `resources.workers` at the same time."""

    def identity(self) -> Mapping[str, Any]:
        """Return the number of workers where there are several: it multiplies the batch, and so changes the model."""
        workers = self.params.resources.workers
        return {"workers": workers} if workers > 1 else {}

    def train(self, job: Job) -> None:
        """Train and save into `job.out_dir`, in as many processes as asked for."""
        if self.params.resources.workers > 1:
            from caiflow.engine.training.workers import spread

            spread(self, job, self.params.resources.workers)
        else:
            self.learn(job)

    @abstractmethod
    def learn(self, job: Job) -> None:
        """Train in this process, which may be one of several; the first one saves."""
