"""A process of its own that loads an engine and answers: `python -m support.answering IN OUT`, pickled both.

IN is a list of (source, requests); OUT has, for each, the answers in order, which runner vLLM took, whether it planned ahead,
how often a row was preempted, and how many steps had something to compute.
With CAIFLOW_TEST_NO_WAITING, whatever would wait for a device raises while tokens are drawn.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any


def forbid_waiting() -> None:
    """Have the ways in which a tensor's values come to the host raise within the processor's `apply`."""
    import torch

    from caiflow.engine.llm.vllm.draws_v2 import SeededDraws

    apply = SeededDraws.apply

    def refuse(self: Any, *args: Any, **options: Any) -> Any:
        raise AssertionError("the draw waited for the device")

    def guarded(self: Any, logits: Any, ctx: Any) -> Any:
        kept = {name: getattr(torch.Tensor, name) for name in ("tolist", "item", "cpu", "numpy", "__bool__", "nonzero")}
        for name in kept:
            setattr(torch.Tensor, name, refuse)
        try:
            return apply(self, logits, ctx)
        finally:
            for name, method in kept.items():
                setattr(torch.Tensor, name, method)

    SeededDraws.apply = guarded


def counted(owner: Any, name: str) -> list[None]:
    """Return a list that grows by one with each call of a method."""
    calls: list[None] = []
    method = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        calls.append(None)
        return method(*args, **options)

    setattr(owner, name, call)
    return calls


def steps_with_work(scheduler: Any) -> list[None]:
    """Return a list that grows by one with each step that computes a token."""
    steps: list[None] = []
    schedule = scheduler.schedule

    def counted_schedule(*args: Any, **options: Any) -> Any:
        planned = schedule(*args, **options)
        if planned.total_num_scheduled_tokens:
            steps.append(None)
        return planned

    scheduler.schedule = counted_schedule
    return steps


def main(given: str, out: str) -> None:
    """Answer what the file asks."""
    from caiflow.engine.llm.load import load_engine
    from support.asking import ask

    answered = []
    for source, requests in pickle.loads(Path(given).read_bytes()):
        engine = load_engine(source)
        if os.environ.get("CAIFLOW_TEST_NO_WAITING"):
            forbid_waiting()
        config = engine._engine.vllm_config
        runner = 2 if config.use_v2_model_runner else 1
        ahead = bool(config.scheduler_config.async_scheduling)
        scheduler = engine._engine.engine_core.engine_core.scheduler
        preempted, steps = counted(scheduler, "_preempt_request"), steps_with_work(scheduler)
        found = {"answers": ask(engine, requests), "runner": runner, "ahead": ahead}
        answered.append({**found, "preempted": len(preempted), "steps": len(steps)})
        engine.close()
    Path(out).write_bytes(pickle.dumps(answered))


if __name__ == "__main__":
    main(*sys.argv[1:])
