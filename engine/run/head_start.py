"""The head start: processes made ready before there is work for them, so that loading and importing cost no time of their own.

Owns what is loaded and imported ahead, on a machine without GPUs. Schedules nothing: a step for which nothing was made ready in
time waits as it would have without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from caiflow.engine.operator import MetricsOperator, ModelOperator, RowOperator
from caiflow.engine.run.later import asked_before
from caiflow.engine.run.units import TRAINERS

if TYPE_CHECKING:
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.run.on_ray.cluster import Cluster
    from caiflow.engine.spec.grammar import Step

ENGINES = ("torch", "transformers", "caiflow.engine.llm.local.transformers")
"""What a spare engine process imports before its model is trained."""


class HeadStart:
    """Loads the first engine while the sources are read, and lets later steps' processes import while its rows flow."""

    def __init__(self, cluster: Cluster, unsettled: Callable[[], Sequence[Step]]) -> None:
        self._cluster = cluster
        self._unsettled = unsettled
        self._given = self._trained = 0  # engines to come
        self._ready = False

    def load_first_engine(self, resolver: Resolver, client: str) -> None:
        """Load the first model that steps will ask, where nothing is trained for it and the step that asks can't begin yet."""
        asking = self._asking()
        asked = dict.fromkeys(name for _, name in asking)
        step, first = next(((step, name) for step, name in asking if name in resolver.spec.models), (None, ""))
        source = resolver.model(first) if first else None
        if self._cluster.machines.gpus or step is None or source is None:
            return
        self._cluster.engines.alone = len(asked) == 1 and not self._trains()
        self._given = sum(name in resolver.spec.models for name in asked) - 1
        self._trained = len(asked) - 1 - self._given
        may_need_none = step.input in resolver.artifacts or asked_before(resolver.store.ledger_dir, step.op, source)
        if not may_need_none:
            self._cluster.engine(source, first, client)

    def on_engine_ready(self) -> None:
        """Import ahead for a training and given models to come, once: when the first engine has loaded, and not beside it."""
        if self._ready:
            return
        self._ready = True
        if self._trained and self._trains():
            self._cluster.warm("train", TRAINERS)
        if self._given:
            self._cluster.engines.expect(self._given, ENGINES)

    def on_training(self) -> None:
        """Import ahead for the engine of what is trained: beside the training, and not beside the rows before it."""
        if self._trained:
            self._trained -= 1
            self._cluster.engines.expect(1, ENGINES)

    def _trains(self) -> bool:
        return any(issubclass(step.operator_type(), ModelOperator) for step in self._unsettled())

    def _asking(self) -> list[tuple[Step, str]]:
        """Return the unsettled steps that will ask models, in their order, with each of these."""
        asking = [step for step in self._unsettled() if issubclass(step.operator_type(), (RowOperator, MetricsOperator))]
        return [(step, r.name) for step in asking for r in step.references() if r.kind == "model"]
