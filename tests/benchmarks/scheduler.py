"""Measures the scheduler alone: rows through generate and four rounds of revision on an engine that answers at once.

Nine calls a row, all through the real host, client, ledger and writers. Run `python -m benchmarks.scheduler` within tests/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.sides import peak_mb
from caiflow.engine.constitution.load import load_constitution
from caiflow.engine.flow.counting import count_first, count_known
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.stream import Flow
from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.operator import StepContext
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger
from caiflow.operators.generate import Generate
from caiflow.operators.revise import Revise
from support.scripted import ScriptedEngine

SIZES = (1_000, 10_000)
REPLICAS = (2, 4)
"""Engines that share the rows, for a curve beside the one engine of the sizes."""
FULL = 182_831
"""The number of red-team prompts in the paper."""
CALLS_PER_ROW = 9
CALLS_TARGET = 5_000.0
"""Calls per second that the design asks for."""
PLAN_TARGET_S = 10.0
"""Seconds within which a finished ledger of the full size is to be planned."""
PLAN_CPU_S = 5.0
"""CPU seconds that one process is to take for that."""


def answer(request: Request) -> Answer:
    """Return about 40 tokens that depend on the call."""
    return Completion(f"answer number {request.seed} " * 8, "stop", 200, 40)


def chain() -> list[FlowStep]:
    """Return the two steps: one answer, then four rounds of critique and revision."""
    context = StepContext(seed=1, constitution=load_constitution("harmless", Path()))
    first = Generate(Generate.params_type(input="source", model="m"), context)
    rounds = Revise(Revise.params_type(input="response", model="m", rounds=4), context)
    return [
        FlowStep("response", first, "source", "response", "generate-m", "m", "m", 1, first.params),
        FlowStep("revision", rounds, "response", "revision", "revise-m", "m", "m", 1, rounds.params),
    ]


def write_source(folder: Path, rows: int) -> Rows:
    """Write prompts of about 250 characters."""
    with RowsWriter(folder, {"uid": "text", "prompt": "messages"}) as writer:
        for i in range(rows):
            writer.write_rows(
                [{"uid": f"u{i}", "prompt": [{"role": "user", "content": f"question number {i} of the lot " * 8}]}]
            )
    return Rows(folder)


async def stream(folder: Path, source: Rows, replicas: int = 1) -> int:
    """Run all rows over so many engines and return the number of calls."""
    steps = chain()
    with ExitStack() as stack:
        hosts = [EngineHost(lambda: ScriptedEngine(answer, capacity=512, keep=False)) for _ in range(replicas)]
        for host in hosts:
            stack.callback(host.close)
        ledgers = {s.namespace: stack.enter_context(Ledger(folder / "ledger", s.namespace)) for s in steps}
        types = {"uid": "text", "prompt": "messages"}
        writers = {
            s.name: stack.enter_context(RowsWriter(folder / "out" / s.name, {**types, **s.operator.writes()})) for s in steps
        }
        async with EngineClient([LocalLink(host) for host in hosts]) as client:
            tallies = await Flow(steps, ledgers, {"m": client}, writers).run(source)
    return sum(tally.calls for tally in tallies.values())


def one_size(rows: int, replicas: int = 1) -> dict[str, float]:
    """Run one size in this process; return rates, times and the growth of memory."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_source(folder / "source", rows)
        asyncio.run(stream(folder / "warm", write_source(folder / "few", 200)))
        before = peak_mb()
        began, cpu = time.perf_counter(), _cpu_s()
        calls = asyncio.run(stream(folder, source, replicas))
        seconds, cpu = time.perf_counter() - began, _cpu_s() - cpu
        growth = peak_mb() - before
        began = time.perf_counter()
        ledgers = {step.namespace: Ledger(folder / "ledger", step.namespace) for step in chain()}
        count_known(chain(), source, ledgers.__getitem__)
        found = {"rows": rows, "calls_per_s": calls / seconds, "growth_mb": growth, "plan_s": time.perf_counter() - began}
        planned = _cpu_s()
        ledgers = {step.namespace: Ledger(folder / "ledger", step.namespace) for step in chain()}
        count_first(chain(), source, ledgers.__getitem__, rows)  # the same in one process
        return {**found, "call_cpu_us": 1e6 * cpu / calls, "plan_cpu_s": _cpu_s() - planned}


def measure(sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Return a line per size and figure, against the design's targets; each size runs in a process of its own."""
    found, few_us = [], 0.0
    for rows in sizes:
        got = _measured(rows, 1)
        rate, call_us, plan_cpu_s = got["calls_per_s"], got["call_cpu_us"], PLAN_CPU_S * rows / FULL
        few_us = few_us or call_us
        found += [
            _line(f"scheduler alone, {rows} rows x {CALLS_PER_ROW} calls", rate, CALLS_TARGET, "calls/s", rate / CALLS_TARGET),
            _line(f"scheduler memory growth, {rows} rows", got["growth_mb"], 1536.0, "MB", 1536.0 / max(1.0, got["growth_mb"])),
            _line(f"plan of a finished ledger, {rows} rows", got["plan_s"], PLAN_TARGET_S, "s", PLAN_TARGET_S / got["plan_s"]),
            _line(f"floor: CPU a call, {rows} rows (the first size)", call_us, round(few_us, 1), "us", few_us / call_us),
            _line(
                f"floor: CPU of planning a finished ledger in one process, {rows} rows",
                got["plan_cpu_s"],
                round(plan_cpu_s, 2),
                "s",
                plan_cpu_s / got["plan_cpu_s"],
            ),
        ]
    for replicas in REPLICAS:
        rate = _measured(SIZES[-1], replicas)["calls_per_s"]
        name = f"scheduler alone, {SIZES[-1]} rows over {replicas} engines"
        found.append(_line(name, rate, CALLS_TARGET, "calls/s", rate / CALLS_TARGET))
    return found


def _measured(rows: int, replicas: int) -> dict[str, float]:
    """Return the figures of one size, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scheduler", "--one", str(rows), "--replicas", str(replicas)]
    said = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def _line(name: str, ours: float, theirs: float, unit: str, ratio: float) -> dict[str, Any]:
    return {"name": name, "ours": round(ours, 2), "theirs": theirs, "unit": unit, "ratio": round(ratio, 3), "runs": 1}


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    """Measure the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, help="run this size here and print its raw figures")
    parser.add_argument("--replicas", type=int, default=1, help="engines for --one")
    parser.add_argument("--sizes", type=int, nargs="+", default=[*SIZES, 100_000, FULL])
    given = parser.parse_args()
    print(json.dumps(one_size(given.one, given.replicas) if given.one else measure(given.sizes)))


if __name__ == "__main__":
    main()
