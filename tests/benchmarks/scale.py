"""Where one flow saturates: the real client, flow and ledger in front of engines whose speed is a parameter.

Each engine stands for a GPU: `SLOTS` calls at once, each of which takes as long as its tokens do at the engine's speed shared
among them. No model, no Ray: what is measured is whether the one process that hands out the calls keeps so many engines busy.
Run `python -m benchmarks.scale` within tests/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.scheduler import answer, chain, write_source
from benchmarks.sides import peak_mb
from caiflow.engine.flow.stream import Flow
from caiflow.engine.llm.base import Answer, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.store.ledger import Ledger

GPUS = (1, 8, 64)
SLOTS = 128
TOKENS = 256
"""Of an answer: a critique's length."""
SPEED = 12_000.0
"""Tokens of answers a second of one GPU at full slots: about what vLLM's makers report of 8B models on a recent one."""
SECONDS = 20.0
"""How long each size is kept busy."""


class PacedLink:
    """A link to an engine that answers when an engine of that speed would have."""

    waiting = ""
    capacity = SLOTS

    def __init__(self, speed: float) -> None:
        self._call_s = TOKENS * SLOTS / speed
        self._queued: list[tuple[int, Request]] = []
        self._slots: list[tuple[float, int, Request]] = []
        self._came = asyncio.Event()

    async def open(self) -> None:
        """Be there."""

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Take requests: into free slots, or behind them."""
        self._queued += requests
        self._fill(time.monotonic())

    async def collect(self) -> list[tuple[int, Answer]]:
        """Wait for what is due, half a second at most; slots come free when their calls were due, not when somebody looks."""
        if not self._slots:
            self._came.clear()
            await self._came.wait()
        await asyncio.sleep(min(0.5, max(0.0, self._slots[0][0] - time.monotonic())))
        now, done = time.monotonic(), []
        while self._slots and self._slots[0][0] <= now:
            due, number, request = self._slots.pop(0)
            done.append((number, answer(request)))
            self._fill(due)
        return done

    async def revive(self) -> None:
        """Be there again."""

    def _fill(self, since: float) -> None:
        while self._queued and len(self._slots) < SLOTS:
            number, request = self._queued.pop(0)
            self._slots.append((since + self._call_s, number, request))  # equal calls end in the order in which they began
            self._came.set()


async def carry_out(folder: Path, gpus: int, speed: float, seconds: float) -> dict[str, Any]:
    """Keep so many engines busy with rows of nine calls; return the calls a second, and what they could have been."""
    best = gpus * speed / TOKENS
    rows = max(2 * SLOTS * gpus, round(best * seconds / 9))
    source = write_source(folder / "source", rows)
    steps = chain()
    with ExitStack() as stack:
        ledgers = {step.namespace: stack.enter_context(Ledger(folder / "ledger", step.namespace)) for step in steps}
        types = {"uid": "text", "prompt": "messages"}
        writers = {
            step.name: stack.enter_context(RowsWriter(folder / step.name, {**types, **step.operator.writes()}))
            for step in steps
        }
        async with EngineClient([PacedLink(speed) for _ in range(gpus)]) as client:
            cpu, began = time.process_time(), time.monotonic()
            tallies = await Flow(steps, ledgers, {"m": client}, writers).run(source)
            took, cpu = time.monotonic() - began, time.process_time() - cpu
    calls = sum(tally.calls for tally in tallies.values())
    return {"rows": rows, "calls_per_s": calls / took, "best": best, "busy": cpu / took, "peak_mb": peak_mb()}


def measure(sizes: Sequence[int] = GPUS, speed: float = SPEED, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """Return a line per number of GPUs, each from a process of its own, beside what the engines could do."""
    lines = []
    for gpus in sizes:
        command = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            "--one",
            str(gpus),
            "--speed",
            str(speed),
            "--seconds",
            str(seconds),
        ]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        line = {
            "name": f"calls to {gpus} GPUs at {speed:g} tokens/s",
            "ours": round(found["calls_per_s"], 1),
            "unit": "calls/s",
        }
        ratio = round(found["calls_per_s"] / found["best"], 3)
        told = {"busy": round(found["busy"], 2), "peak_mb": round(found["peak_mb"])}
        lines.append({**line, "theirs": round(found["best"], 1), "ratio": ratio, "runs": 1, **told})
    return lines


def main() -> None:
    """Measure all sizes, or print the raw figures of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, help="this number of GPUs, here")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--speed", type=float, default=SPEED, help="tokens a second of one GPU")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asyncio.run(carry_out(Path(folder), given.one, given.speed, given.seconds))))
        return
    for line in measure(given.gpus, given.speed, given.seconds):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
