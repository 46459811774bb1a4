"""A run as a job of a Ray cluster: handed over to Ray's Jobs API with its folder, its log followed; or written for KubeRay.

Owns what is said to Ray's job server. What is in the folder is the caller's.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import ClusterError, PlanError, first_line
from caiflow.engine.store.file_digests import file_sizes

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

MOST_BYTES = 100 * 2**20
"""What Ray takes along of a job's folder."""
MOST_IN_KUBERNETES_BYTES = 900_000
"""What a ConfigMap holds, with some room for its names."""
_SPEC = "/caiflow/spec"
"""Where the folder is on each of KubeRay's nodes."""
_AGAIN_S = 2.0
_AGENT_S = 60.0
"""How long a cluster that has just begun may take until its nodes take jobs."""


@dataclass(frozen=True, slots=True)
class RunJob:
    """A run that is to be a job: its name, the command, the folder in which it begins, and its variables."""

    name: str
    command: Sequence[str]
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def refuse_large(self, most_bytes: int) -> None:
        """Raise where the folder is larger than what takes it.

        Raises:
            PlanError: names the largest file.
        """
        sizes = file_sizes(self.folder)
        if (total := sum(sizes.values())) > most_bytes:
            largest = max(sizes, key=lambda name: sizes[name])
            told = f"{self.name}: its local files have {total / 1e6:.0f} MB, {largest} alone {sizes[largest] / 1e6:.0f}"
            hint = "put large files on a file system that the nodes share, and name them by absolute paths"
            raise PlanError(f"{told}; at most {most_bytes / 1e6:.0f} can be sent along", hint)


def submit(address: str, job: RunJob) -> None:
    """Hand a job over.

    Raises:
        ClusterError: the job server can't be reached, or refuses it.
        PlanError: its folder is too large.
    """
    job.refuse_large(MOST_BYTES)
    environment = {"working_dir": str(job.folder), "env_vars": dict(job.variables)}
    client, until = _client(address), time.monotonic() + _AGENT_S
    while True:
        try:
            client.submit_job(entrypoint=shlex.join(job.command), submission_id=job.name, runtime_env=environment)
            return
        except Exception as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                hint = "another Ray on the head's machine may have its ports" if "available agent" in str(error) else ""
                told = f"{job.name}: the job server at {address} refused it: {first_line(error)}"
                raise ClusterError(told, hint) from error
        time.sleep(_AGAIN_S)


def follow(address: str, name: str, tell: Callable[[str], None]) -> str:
    """Tell what a job prints, from its beginning, until it ends; return what became of it, as Ray calls it.

    Raises:
        ClusterError: the job server can't be reached, or has no such job.
    """
    return asyncio.run(_follow(_client(address), address, name, tell))


def stop(address: str, name: str) -> None:
    """End a job.

    Raises:
        ClusterError: the job server can't be reached, or has no such job.
    """
    try:
        _client(address).stop_job(name)
    except RuntimeError as error:
        raise ClusterError(f"{name}: {first_line(error)}", f"is it a job of {address}?") from error


async def _follow(client: JobSubmissionClient, address: str, name: str, tell: Callable[[str], None]) -> str:
    told, failures = 0, 0
    while True:
        try:
            seen = 0
            async for text in client.tail_job_logs(name):
                seen += len(text)
                if seen > told:
                    tell(text[len(text) - (seen - told) :])
                    told, failures = seen, 0
            status = client.get_job_status(name)
            if status.is_terminal():
                return str(status)
        except Exception as error:
            failures += 1
            if failures > 5 or "does not exist" in str(error):
                raise ClusterError(f"{name}: {first_line(error)}", f"is it a job of {address}?") from error
        await asyncio.sleep(_AGAIN_S)


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        hint = f"name its dashboard, as http://{address.rpartition('//')[2].rpartition(':')[0] or 'HEAD'}:8265"
        raise ClusterError(f"{address}: no address of a job server", hint)
    try:
        client = JobSubmissionClient(address)
    except Exception as error:
        hint = "is the cluster's dashboard on, and reachable from here?"
        raise ClusterError(f"{address}: no job server answers: {first_line(error)}", hint) from error
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # each step of its own
    return client


def kuberay(job: RunJob, image: str, *, workers: int, gpus: int, claim: str, secrets: Sequence[str]) -> list[dict[str, Any]]:
    """Return what KubeRay makes the job of: a ConfigMap with the folder, and a RayJob on a cluster of its own.

    `claim` is the volume claim that holds the store; `secrets` are variables that come from the Secret `NAME-env`. The entry
    point quotes its `&&`: KubeRay hands it on in a shell of another pod, where what follows would be carried out.

    Raises:
        PlanError: the folder is too large for a ConfigMap.
    """
    job.refuse_large(MOST_IN_KUBERNETES_BYTES)
    names = sorted(file_sizes(job.folder))
    contents = {f"f{n}": base64.b64encode((job.folder / name).read_bytes()).decode() for n, name in enumerate(names)}
    items = [{"key": f"f{n}", "path": name} for n, name in enumerate(names)]
    files: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": job.name}, "binaryData": contents}
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in job.variables.items()]
    variables += [{"name": n, "valueFrom": {"secretKeyRef": {"name": f"{job.name}-env", "key": n}}} for n in secrets]
    mounts = [{"name": "spec", "mountPath": _SPEC}]
    container: dict[str, Any] = {"image": image, "env": variables, "volumeMounts": mounts}
    volumes: list[dict[str, Any]] = [{"name": "spec", "configMap": {"name": job.name, "items": items}}]
    if claim:
        mounts.append({"name": "store", "mountPath": job.variables["CAIFLOW_HOME"]})
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": claim}})

    def pod(name: str, has_gpus: int) -> dict[str, Any]:
        limits = {"resources": {"limits": {"nvidia.com/gpu": has_gpus}}} if has_gpus else {}
        return {"spec": {"containers": [{"name": name, **container, **limits}], "volumes": volumes}}

    head = {"rayStartParams": {}, "template": pod("ray-head", 0)}
    group = {"groupName": "workers", "replicas": workers, "minReplicas": workers, "maxReplicas": workers}
    group |= {"rayStartParams": {}, "template": pod("ray-worker", gpus)}
    spec = {
        "entrypoint": shlex.join(["sh", "-c", f"cd {_SPEC} && exec {shlex.join(job.command)}"]),
        "shutdownAfterJobFinishes": True,
        "backoffLimit": 0,
        "rayClusterSpec": {"headGroupSpec": head, "workerGroupSpecs": [group]},
    }
    return [files, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": job.name}, "spec": spec}]
