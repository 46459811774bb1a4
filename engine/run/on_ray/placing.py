"""How processes are put on nodes: what each may use there.

Owns the options that Ray is given. Counts nothing: what is free is the cluster's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from caiflow.engine.identity import digest
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.run.on_ray.actors import EngineActor, Worker
from caiflow.engine.run.on_ray.entering import WORKER_ENV
from caiflow.engine.run.on_ray.nodes import Labels, Node

ENGINE_RESTARTS = 5


def new_worker(gpus: float, threads: int, where: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the process of a worker, placed by Ray's options `where`, and its answer to which node it is on."""
    import ray

    options = {"num_cpus": 0, "num_gpus": gpus, "max_concurrency": 4, "runtime_env": _environment(threads)}
    actor = ray.remote(Worker).options(**options, **where).remote()
    return actor, actor.node.remote()


def new_engine(gpus: float, threads: int, labels: Labels, name: str | None = None) -> Any:
    """Return the process of an engine, which Ray begins again where it dies, and finds by its name.

    Those of one model are spread over the nodes with these labels.
    """
    import ray

    options = {"num_cpus": 0, "num_gpus": gpus, "max_concurrency": 64, "max_restarts": ENGINE_RESTARTS}
    where = {"scheduling_strategy": "SPREAD", "label_selector": dict(labels) or None}
    return ray.remote(EngineActor).options(name=name, runtime_env=_environment(threads), **where, **options).remote()


def away_from(nodes: Collection[str], labels: Labels) -> Labels:
    """Return the labels that keep a process off these nodes, by their ids, beside those that it wants."""
    return {**labels, "ray.io/node-id": f"!in({', '.join(nodes)})"} if nodes else labels


def engine_key(source: ModelSource) -> str:
    """Return what makes two model entries share an engine: the model's identity and the engine's settings."""
    return digest({"model": source.identity, "engine": source.engine, "options": dict(source.options)})


def end(actor: Any) -> None:
    """End a process for good, wherever it is."""
    import ray

    with contextlib.suppress(Exception):
        ray.kill(actor, no_restart=True)


def answered(reference: Any) -> str:
    """Return what a process has answered already, or nothing."""
    import ray

    with contextlib.suppress(Exception):
        return str(ray.get(reference, timeout=0))
    return ""


def engine_gpus(source: ModelSource, nodes: Sequence[Node]) -> float:
    """Return the GPUs of one engine of a model on these nodes."""
    if source.served or not any(node.gpus for node in nodes):
        return 0.0
    asked = source.options.get("num_gpus")
    arguments = source.options.get("engine_args") or {}
    split = arguments.get("tensor_parallel_size", 1) * arguments.get("pipeline_parallel_size", 1)
    return float(asked if asked is not None else split)


def replicas(source: ModelSource) -> int:
    """Return how many engines serve a model."""
    return int(source.options.get("replicas") or 1)


def _environment(threads: int) -> dict[str, Any]:
    return {"env_vars": {**WORKER_ENV, "OMP_NUM_THREADS": str(threads)}}
