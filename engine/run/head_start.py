"""The head start: processes made ready before there is work for them, so that loading and importing cost no time of their own.

Owns what is loaded and imported ahead, on a machine without GPUs. Schedules nothing: a step for which nothing was made ready in
time waits as it would have without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from caiflow.engine.operator import MetricsOperator, ModelOperator, RowOperator

if TYPE_CHECKING:
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.run.on_ray.cluster import Cluster
    from caiflow.engine.spec.grammar import Step

TRAINERS = ("torch", "transformers", "datasets", "peft", "trl")
"""What a training worker imports while the first rows are generated."""
ENGINES = ("torch", "transformers", "caiflow.engine.llm.local.transformers")
"""What a spare engine process imports before its model is trained."""


class HeadStart:
    """Loads the first engine while the sources are read, and lets later steps' processes import while its rows flow."""

    def __init__(self, cluster: Cluster, unsettled: Callable[[], Sequence[Step]]) -> None:
        self._cluster = cluster
        self._unsettled = unsettled
        self._engines_to_come = 0

    def load_first_engine(self, resolver: Resolver, client: str) -> None:
        """Load the first model that steps will ask, where nothing has to be trained for it."""
        asked = self._asked_models()
        first = next((name for name in asked if name in resolver.spec.models), None)
        source = resolver.model(first) if first else None
        if self._cluster.gpus or first is None or source is None:
            return
        self._cluster.alone = len(asked) == 1 and not self._trains()
        self._cluster.engine(source, first, client)
        self._engines_to_come = len(asked) - 1

    def on_engine_ready(self) -> None:
        """Import ahead for the engines and trainings to come, once: when the first engine has loaded, and not beside it."""
        number, self._engines_to_come = self._engines_to_come, 0
        if number and self._trains():
            self._cluster.warm("train", TRAINERS)
        if number:
            self._cluster.expect_engines(number, ENGINES)

    def _trains(self) -> bool:
        return any(issubclass(step.operator_type(), ModelOperator) for step in self._unsettled())

    def _asked_models(self) -> list[str]:
        """Return the models that unsettled steps will ask, in the order of the steps."""
        asking = [step for step in self._unsettled() if issubclass(step.operator_type(), (RowOperator, MetricsOperator))]
        return list(dict.fromkeys(r.name for step in asking for r in step.references() if r.kind == "model"))
