"""Data-parallel training: the same step in several processes, on one node or more, that share their gradients.

Owns how a process takes its place among the others; the first one reports progress and figures, and saves. Begins and ends
none: that is done by whoever carries out the step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from caiflow.engine.errors import StepError


class Seat(NamedTuple):
    """Where a process may take part: its node, the node's address, a port that is free there, and the GPUs it was given."""

    node: str
    address: str
    port: int
    gpus: tuple[str, ...] = ()


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first worker go through this block alone, and the others after it."""
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def first_says(*values: int, device: Any) -> list[int]:
    """Return the first process's values in all: what all must do alike can't go by each one's clock, or view of a folder."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(values)
    said = torch.tensor(values, dtype=torch.int64, device=device)
    torch.distributed.broadcast(said, 0)
    return [int(value) for value in said.tolist()]


def rank() -> int:
    """Return which of several processes this is; 0 of one that has no others."""
    return int(os.environ.get("RANK", "0"))


def refuse_alone(workers: int) -> None:
    """Raise where a training of several processes is carried out by one that has no others.

    Raises:
        StepError: it would learn from smaller batches than it was asked to.
    """
    there = int(os.environ.get("WORLD_SIZE", "1"))
    if workers not in (1, there):
        raise StepError(f"{workers} workers were asked for, and there are {there}", "run it by `caiflow run`")


def place(seats: Sequence[Seat], mine: int) -> dict[str, str]:
    """Return the variables that tell the process of seat `mine` its place: ranks go node by node, from the first seat on.

    Processes of one node see each other's GPUs, which the library between them wants, and each takes that of its rank there.
    """
    nodes = list(dict.fromkeys(seat.node for seat in seats))
    order = sorted(range(len(seats)), key=lambda seat: nodes.index(seats[seat].node))
    beside = [seat for seat in order if seats[seat].node == seats[mine].node]
    numbers = {"RANK": order.index(mine), "WORLD_SIZE": len(seats), "MASTER_PORT": seats[0].port}
    numbers |= {"LOCAL_RANK": beside.index(mine), "LOCAL_WORLD_SIZE": len(beside)}
    gpus = dict.fromkeys(gpu for seat in beside for gpu in seats[seat].gpus)
    return {
        **{name: str(value) for name, value in numbers.items()},
        "MASTER_ADDR": seats[0].address,
        **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}),
    }


@contextlib.contextmanager
def taking_part(seats: Sequence[Seat], mine: int) -> Iterator[None]:
    """Be one of several processes from here to the block's end, which all reach together; this one can't be another later."""
    os.environ.update(place(seats, mine))
    yield
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
