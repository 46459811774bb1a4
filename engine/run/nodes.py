"""The nodes of a cluster: what each has, whether it sees the store, whether its code is this process's, and what fits on one.

Asks nodes and decides; places nothing.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caiflow.engine.errors import ClusterError, StepError
from caiflow.engine.run.entering import WORKER_ENV
from caiflow.engine.run.units import StepResult
from caiflow.engine.store.disk import storing
from caiflow.engine.store.file_digests import file_sizes
from caiflow.engine.version import VERSION

ANSWER_S = 30.0
"""Longest wait for the nodes to answer; a process for the question has to start on each."""
SEEN_S = 15.0
"""How long what another node wrote may take to be seen here."""
PATIENCE_S = 20.0
"""How long a process may wait for GPUs before it is said."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is up: its id in Ray, its address, and its CPU cores and GPUs."""

    id: str
    address: str
    cpus: float
    gpus: float


def alive() -> list[Node]:
    """Return the nodes that are up."""
    import ray

    up = [node for node in ray.nodes() if node["Alive"]]
    return [
        Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in up
    ]


def refuse_impossible(nodes: Sequence[Node], gpus: float, count: int, what: str) -> None:
    """Raise where `count` processes of `gpus` GPUs each can never run here, even one after the other closed its own.

    Raises:
        ClusterError: no node has as many GPUs, or all together have too few.
    """
    largest, total = max((node.gpus for node in nodes), default=0.0), sum(node.gpus for node in nodes)
    if gpus > largest:
        raise ClusterError(
            f"{what} wants {gpus:g} GPUs on one node; of the {len(nodes)} here the largest has {largest:g}", "lower `num_gpus`"
        )
    if gpus * count > total:
        raise ClusterError(
            f"{what} wants {gpus * count:g} GPUs, the cluster has {total:g}", "lower `num_gpus`, `replicas` or `workers`"
        )


def refuse_strangers(nodes: Sequence[Node], home: Path) -> None:
    """Raise unless every other node reads what this process writes into the store at `home`, and has the same code.

    Raises:
        ClusterError: names each node with what is wrong with it.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes if node.id != here]
    if not others:
        return
    nonce = uuid.uuid4().hex
    mark = home / f"seen-{nonce}"
    with storing(home):
        home.mkdir(parents=True, exist_ok=True)
        mark.write_text(nonce, encoding="utf-8")
    try:
        wrong = [f"{node.address} {said}" for node, found in _asked(others, mark) if (said := _wrong(found, nonce, home))]
    finally:
        mark.unlink(missing_ok=True)
    if wrong:
        raise ClusterError("the cluster isn't fit for this run: " + "; ".join(wrong))


def refuse_unseen(results: Mapping[str, StepResult], place: Callable[[], str]) -> None:
    """Raise where what a worker says it wrote isn't what is here: its node may have another store under the same path.

    Other nodes' files may take a moment to be seen (NFS keeps what it knows of a folder for some seconds).

    Raises:
        StepError: names the node, by `place`, and a file.
    """
    until = time.monotonic() + SEEN_S
    while unseen := [path for one in results.values() if one.staged for path in _unseen(one.staged, one.files)]:
        if time.monotonic() > until:
            raise StepError(
                f"{place()} wrote {len(unseen)} files that aren't here as it wrote them, {unseen[0]} among them",
                "put CAIFLOW_HOME on a file system that all nodes share, under one path",
            )
        time.sleep(0.2)


def _unseen(folder: Path, files: Mapping[str, int]) -> list[Path]:
    here = file_sizes(folder)
    return [folder / name for name in sorted({*files, *here}) if files.get(name) != here.get(name)]


@dataclass(frozen=True, slots=True)
class Unplaced:
    """Processes that Ray hasn't started yet: what they are for, the GPUs each wants, and since when (`time.monotonic`)."""

    what: str
    gpus: float
    placed: Sequence[Any]
    since: float


def still_unplaced(processes: Sequence[Unplaced]) -> tuple[list[Unplaced], list[str]]:
    """Return those that wait within their patience, and a sentence for each whose patience has just ended."""
    import ray

    left, said = [], []
    for one in processes:
        _, missing = ray.wait(list(one.placed), num_returns=len(one.placed), timeout=0)
        if missing and time.monotonic() - one.since < PATIENCE_S:
            left.append(one)
        elif missing:
            free, total = (found().get("GPU", 0.0) for found in (ray.available_resources, ray.cluster_resources))
            said.append(
                f"{one.what} waits for {one.gpus:g} GPUs: of the cluster's {total:g}, {free:g} are free; others have the rest"
            )
    return left, said


def _asked(nodes: Sequence[Node], mark: Path) -> list[tuple[Node, Mapping[str, str] | str]]:
    """Return each node's answer, or what was in its way."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "runtime_env": {"env_vars": dict(WORKER_ENV)}}
    look = ray.remote(_look)
    asked = [look.options(scheduling_strategy=On(node.id, soft=False), **options).remote(str(mark)) for node in nodes]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
    found: list[Mapping[str, str] | str] = []
    for answer in asked:
        try:
            found.append(ray.get(answer) if answer in answered else f"gave no answer in {ANSWER_S:g} s")
        except Exception as error:  # whatever keeps caiflow from being imported there
            found.append(f"can't run caiflow: {str(error).strip().splitlines()[-1]}")
    return list(zip(nodes, found, strict=True))


def _look(mark: str) -> dict[str, str]:
    """Return what a node reads of the store, and the versions of its code."""
    try:
        seen = Path(mark).read_text(encoding="utf-8")
    except OSError:
        seen = ""
    return {"seen": seen, **_code()}


def _code() -> dict[str, str]:
    return {"caiflow": VERSION, "Python": f"{sys.version_info.major}.{sys.version_info.minor}"}


def _wrong(found: Mapping[str, str] | str, nonce: str, home: Path) -> str:
    """Return what is wrong with a node's answer, in words that follow its name; empty where nothing is."""
    if isinstance(found, str):
        return found
    if found["seen"] != nonce:
        return f"doesn't see the store at {home}: put CAIFLOW_HOME on a file system that all nodes share, under one path"
    unlike = [f"{name} {found[name]}, here it is {version}" for name, version in _code().items() if found[name] != version]
    return f"has {', '.join(unlike)}" if unlike else ""
