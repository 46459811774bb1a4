"""What of a run the cluster can hold: which steps it never can, and how much of a chain at once.

Decides before anything is begun. Starts nothing and reserves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from caiflow.engine import registry
from caiflow.engine.errors import ClusterError
from caiflow.engine.operator import MetricsOperator, ModelOperator
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.engine.run.on_ray.nodes import Needed
from caiflow.engine.run.on_ray.placing import engine_key
from caiflow.engine.run.presence import places
from caiflow.engine.training.operator import TrainingOperator

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.run.on_ray.cluster import Cluster
    from caiflow.engine.spec.grammar import Step


def refuse_unfit(resolver: Resolver, cluster: Cluster, steps: Sequence[Step]) -> None:
    """Raise before the first step where the cluster can't do what the steps to come want of it.

    Raises:
        ClusterError: says what they want and what there is.
    """
    others = {step.op: step.operator_type().__module__ for step in steps if not registry.is_built_in(step.op)}
    cluster.refuse_unfit(resolver.store.home, others, _needed(resolver, cluster, steps))
    for step in steps:
        kind = step.operator_type()
        if issubclass(kind, ModelOperator):
            room, operator = training_room(step, cluster), resolver.spec.operators[step.name]
            cluster.refuse_too_large(step.name, room)
            asked = operator.asks() if isinstance(operator, ModelOperator) else ()
            _refuse_too_many(cluster, step.name, engines(resolver, asked), room.all_gpus)
            continue
        for name in _asked(step):
            for source in engines(resolver, [name]):
                cluster.engines.refuse_too_large(source, name)
        if issubclass(kind, MetricsOperator):
            _refuse_too_many(cluster, step.name, engines(resolver, _asked(step)))


def _needed(resolver: Resolver, cluster: Cluster, steps: Sequence[Step]) -> list[Needed]:
    """Return the models of steps, each with the nodes on which it may be loaded: a training's own, or an engine's."""
    found: dict[tuple[Any, ...], Needed] = {}
    for step in steps if cluster.machines.several else ():
        operator = resolver.spec.operators[step.name]
        own = training_room(step, cluster) if isinstance(operator, ModelOperator) else None
        asked = operator.asks() if isinstance(operator, ModelOperator) else ()
        for name in filter(partial(_from_outside, resolver), _asked(step)):
            for source in engines(resolver, [name]):
                room = own if own is not None and name not in asked else cluster.engines.room(source)
                needed = Needed(name, tuple(places(source, resolver.store.home)), room.gpus, room.labels)
                found[needed.places, needed.gpus, tuple(needed.labels.items())] = needed
    return list(found.values())


def _from_outside(resolver: Resolver, model: str) -> bool:
    """Return whether a model needs more than the store, in which what is trained will be, but for what an adapter lies over."""
    while resolver.model(model) is None and model in resolver.spec.steps:
        params = resolver.spec.steps[model].params
        if getattr(params, "lora", None) is None or getattr(params, "merge", True):
            return False
        model = getattr(params, "model", "")
    return True


def refuse_without_keys(resolver: Resolver, steps: Sequence[Step]) -> None:
    """Raise where the key of a server that the steps ask isn't set on this machine, which is all that a run uses.

    Raises:
        ClusterError: names the variable.
    """
    for name in dict.fromkeys(name for step in steps for name in _asked(step)):
        entry = resolver.spec.models.get(name)
        variable = entry.api_key_env if entry is not None and entry.served else None
        if variable and not os.environ.get(variable):
            raise ClusterError(
                f"models.{name}.api_key_env: the variable {variable} isn't set", "export the server's key in it, and run again"
            )


def training_room(step: Step, cluster: Cluster) -> Room:
    """Return what a training wants: a process for each of its workers; one that knows no others has all their GPUs itself."""
    wanted, kind = step.params.resources, step.operator_type()
    most = max(node.gpus for node in cluster.machines.possible)
    gpus = float(wanted.num_gpus if wanted.num_gpus is not None else min(1.0, most))
    if not issubclass(kind, TrainingOperator):
        return Room(gpus * wanted.workers, wanted.num_cpus)
    return Room(gpus, wanted.num_cpus, wanted.workers, getattr(step.params, "node_labels", {}))


def beginning(resolver: Resolver, cluster: Cluster, chain: Sequence[Step]) -> list[Step]:
    """Return as much of a chain, from its start, as has engines that fit side by side; the rest begins behind it."""
    count = len(chain)
    while count > 1 and not _fits(cluster, engines(resolver, (name for step in chain[:count] for name in _asked(step)))):
        count -= 1
    return list(chain[:count])


def never_fits(last: str, chain: Sequence[Step]) -> tuple[str, str]:
    """Return that steps which end where enough rows passed can't run side by side, and what to do."""
    names = ", ".join(step.name for step in chain)
    told = f"the engines of {names} don't fit side by side, and `until` of {last} ends them together"
    return told, "give each a share of a GPU (`num_gpus: 0.3` in its entry), or leave `until` out"


def engines(resolver: Resolver, models: Iterable[str]) -> list[ModelSource]:
    """Return what models are served by, one for each engine; for one that isn't trained yet, what it is trained from."""
    found: dict[str, ModelSource] = {}
    for name in models:
        source = resolver.model(name)
        key = engine_key(source) if source is not None else name
        behind = name
        while source is None and behind in resolver.spec.steps:
            behind = getattr(resolver.spec.steps[behind].params, "model", None) or ""
            source = resolver.model(behind) if behind else None
        if source is not None:
            found[key] = source
    return list(found.values())


def _asked(step: Step) -> list[str]:
    return [reference.name for reference in step.references() if reference.kind == "model"]


def _refuse_too_many(cluster: Cluster, what: str, sources: Sequence[ModelSource], beside: float = 0.0) -> None:
    """Raise where the engines of models that `what` asks side by side, itself on `beside` GPUs, can never all be here."""
    wanted = sum(map(cluster.engines.gpus, sources))
    if wanted and wanted + beside > cluster.machines.gpus:
        own = f" beside {beside:g} of its own" if beside else ""
        told = f"{what} asks {len(sources)} models side by side, whose engines want {wanted:g} GPUs{own}"
        hint = "give each a share of one (`num_gpus: 0.3` in its entry), or ask fewer in one step"
        raise ClusterError(f"{told}; there are {cluster.machines.gpus:g}", hint)


def _fits(cluster: Cluster, sources: Sequence[ModelSource]) -> bool:
    """Return whether the engines of all these models have room side by side where nothing else runs."""
    return sum(map(cluster.engines.gpus, sources)) <= cluster.machines.gpus
