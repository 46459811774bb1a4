"""Data-parallel training: the same step in several processes of one machine that share their gradients.

Owns the processes: each gets a GPU of its own where there are GPUs. The first one reports progress and figures, and saves. When
the parent dies, however it dies, so do they.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from caiflow.engine.errors import CaiflowError, StepError
from caiflow.engine.operator import Job

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess


class Learner(Protocol):
    """What learns in each process."""

    def learn(self, job: Job) -> None:
        """Train in this process, which may be one of several; the first one saves."""


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first worker go through this block alone, and the others after it."""
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def spread(operator: Learner, job: Job, workers: int) -> None:
    """Run `operator.learn` in several processes; the first failure ends them all.

    Raises:
        StepError: a worker failed; the text is what it said.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    port = _free_port()
    bare = replace(job, log=None, llms=None, metrics={})
    places = [_Place(rank, workers, port, os.getpid()) for rank in range(workers)]
    processes = [context.Process(target=_work, args=(operator, bare, place, there), daemon=True) for place in places]
    try:
        for process in processes:
            process.start()
        there.close()
        job.metrics |= _follow(here, processes, job)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _follow(pipe: Connection, processes: list[SpawnProcess], job: Job) -> dict[str, Any]:
    """Pass progress on until every worker is done; return the first one's figures."""
    figures: dict[str, Any] = {}
    while True:
        if pipe.poll(0.2):
            with contextlib.suppress(EOFError):
                kind, value = pipe.recv()
                if kind == "failed":
                    raise StepError(value)
                if kind == "log" and job.log is not None:
                    job.log(**value)
                if kind == "done":
                    figures = value
                continue
        codes = [process.exitcode for process in processes]
        if any(codes):
            raise StepError(f"a training worker was lost, exit codes {codes}; run again to resume from the last checkpoint")
        if all(code == 0 for code in codes):
            return figures


class _Place(NamedTuple):
    """One worker's place among all: `port` is where they meet, `parent` the process whose end is theirs too."""

    rank: int
    workers: int
    port: int
    parent: int


def _work(operator: Learner, job: Job, place: _Place, pipe: Connection) -> None:
    """Be one worker."""
    rank, workers, port, parent = place
    _die_with(parent)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()} | {"MASTER_ADDR": "127.0.0.1"})
    job.log = (lambda **told: pipe.send(("log", told))) if rank == 0 else None
    try:
        operator.learn(job)
        if rank == 0:
            pipe.send(("done", job.metrics))
        _leave()
    except CaiflowError as error:
        pipe.send(("failed", str(error)))
        sys.exit(1)
    except BaseException:
        pipe.send(("failed", f"training worker {rank} of {workers} failed:\n{traceback.format_exc()}"))
        sys.exit(1)


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux); elsewhere it ends with the parent's clean exit only."""
    import ctypes

    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
