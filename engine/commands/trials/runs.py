"""Trials of what happens between processes: which GPUs Ray's workers see, and a run whose model is trained and then asked.

Run in a trial's own process. Uses the cluster and the command that runs use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caiflow.engine.commands.trials.bench import Check
from caiflow.engine.commands.trials.device import gpus
from caiflow.engine.display.terminal import say
from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.gangs import Room
from caiflow.engine.run.units import StepResult

START_S = 120.0
ROWS = 8
SPEC = """\
caiflow: 1
name: hand-over
models: {base: {source: tiny}}
steps:
  prompts: {op: load, source: "tiny:helpful_test.jsonl"}
  before:  {op: generate, input: prompts, model: base, sampling: {max_tokens: 24}}
  trained: {op: sft, input: before, model: base, lora: {rank: 8}, max_steps: 2}
  after:   {op: generate, input: prompts, model: trained, sampling: {max_tokens: 24}}
"""


def workers(_folder: Path) -> Iterator[Check]:
    """Ask a worker of Ray for each GPU what it sees."""
    yield Check("ray workers", _workers)


@dataclass(frozen=True, slots=True)
class _Look:
    """A unit of work that tells which GPUs the worker's process sees."""

    number: int

    def run(self, _report: Report) -> Mapping[str, StepResult]:
        """Look."""
        import torch

        seen = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
        return {str(self.number): StepResult(metrics={"gpus": seen})}


def _workers() -> str:
    cluster = Cluster()
    cluster.start()
    try:
        if len(gpus()) != cluster.machines.gpus:
            raise AssertionError(f"Ray counts {cluster.machines.gpus:g} GPUs, torch sees {len(gpus())}")
        seen = _seen(cluster, len(gpus()))
    finally:
        cluster.close()
    if not gpus():
        return "a worker starts and works; it sees no GPU, since this machine has none"
    return judge_sight(seen)


def _seen(cluster: Cluster, number: int) -> list[list[str]]:
    """Return the GPUs that each of `number` workers sees; of one worker without a GPU where it is 0."""
    for place in range(number or 1):
        cluster.submit(_Look(place), "train", Room(1.0 if number else 0.0))
    found: list[list[str]] = []
    until = time.monotonic() + START_S
    while len(found) < (number or 1):
        for finished in cluster.wait(0.5):
            if finished.error:
                raise finished.error
            found += [result.metrics["gpus"] for result in finished.results.values()]
        if time.monotonic() > until:
            raise AssertionError(f"{len(found)} of {number or 1} workers answered in {START_S:g} s")
    return found


def judge_sight(seen: list[list[str]]) -> str:
    """Return what is to be said where each worker sees one GPU and none the same; `seen` holds each one's GPUs."""
    crowded = [gpu for gpu in seen if len(gpu) != 1]
    if crowded:
        raise AssertionError(f"a worker with one GPU sees {len(crowded[0])}; is CUDA_VISIBLE_DEVICES set for all of them?")
    if len({gpu for (gpu,) in seen}) < len(seen):
        raise AssertionError("two workers were given the same GPU")
    return f"{len(seen)} workers, each with a GPU, see that one alone"


def hand_over(folder: Path) -> Iterator[Check]:
    """Run a spec that asks a model, trains it and asks the trained one."""
    yield Check("hand-over", lambda: _hand_over(folder))


def _hand_over(folder: Path) -> str:
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    command = [sys.executable, "-m", "caiflow.engine.cli", "run", "spec.yaml", "--sample", str(ROWS), "--out", "run", "--json"]
    environment = {**os.environ, "CAIFLOW_HOME": str(folder / "home")}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    say(f"{ran.stdout}\n{ran.stderr}", flush=True)
    events = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode:
        raise AssertionError(_cause(events) or ran.stderr.strip() or f"the run ended with exit code {ran.returncode}")
    answered = _answered(folder / "run" / "steps" / "after")
    if answered < ROWS:
        raise AssertionError(f"the trained model answered {answered} of {ROWS} prompts")
    kinds = sorted({event["kind"] for event in events if event["event"] == "engine_ready"})
    return f"asked, trained and asked again on {gpus()[0] if gpus() else 'the CPU'}, with {' and '.join(kinds)}"


def _cause(events: list[dict[str, Any]]) -> str:
    return next((str(event["error"]) for event in reversed(events) if event.get("error")), "")


def _answered(folder: Path) -> int:
    from caiflow.engine.rows.folder import Rows

    return sum(bool(row["response"]) for batch in Rows(folder).batches() for row in batch.to_pylist())
