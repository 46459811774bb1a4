"""Measures what it takes to divide one flow: CPU time of each shard's process and of joining, against the flow whole.

The chain and the engine of `scheduler`, an engine in each process. Shards have their turns one after the other: side by side on
fewer cores each would be charged for the caches and the halves of cores that it shares, which nodes of their own don't.
Run `python -m benchmarks.shards ROWS 1 2 4` within tests/.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.scheduler import CALLS_PER_ROW, answer, chain, write_source
from caiflow.engine.llm.base import Link
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.run.flows import FlowUnit, Joining, Shard
from caiflow.engine.run.shards import cut
from support.scripted import ScriptedEngine


def carried_out(unit: FlowUnit | Shard, out: Path) -> None:
    """Carry out a flow, or a shard of one, in this process; write what it made, and the CPU seconds that the rows took."""
    write_source(out.with_suffix(".few"), 10)  # the first columns made of Python's values cost the import of pandas
    host = EngineHost(lambda: ScriptedEngine(answer, capacity=512, keep=False))
    links: dict[str, list[Link]] = {"m": [LocalLink(host)]}
    asking = replace(unit, flow=replace(unit.flow, links=links)) if isinstance(unit, Shard) else replace(unit, links=links)
    began = time.process_time()
    made = asking.run(lambda _: None)
    cpu_s = time.process_time() - began
    out.write_bytes(pickle.dumps((made, cpu_s)))


def divided(folder: Path, source: Path, rows: int, number: int) -> tuple[list[float], float, dict[str, bytes]]:
    """Return the CPU seconds of each shard and of joining the step that takes longest, and the files' contents."""
    steps = chain()
    staged = {step.name: folder / "staging" / step.name for step in steps}
    for path in staged.values():
        path.mkdir(parents=True)
    flow = FlowUnit(steps, source, {}, staged, folder / "ledger")
    shards = [Shard(flow, i, number, places, "group") for i, places in enumerate(cut(rows, number))]
    for i, unit in enumerate(shards if number > 1 else [flow]):
        (folder / f"{i}.in").write_bytes(pickle.dumps((unit, folder / f"{i}.out")))
        subprocess.run([sys.executable, "-m", "benchmarks.shards", str(folder / f"{i}.in")], check=True)
    parts = [pickle.loads((folder / f"{i}.out").read_bytes()) for i in range(number)]
    joining_s = 0.0
    for step in steps if number > 1 else ():  # each may be joined on a node of its own
        began = time.process_time()
        Joining(flow, step, [made[step.name] for made, _ in parts]).run(lambda _: None)
        joining_s = max(joining_s, time.process_time() - began)
    files = {f"{name}/{path.name}": path.read_bytes() for name, one in staged.items() for path in sorted(one.glob("*"))}
    return [cpu_s for _, cpu_s in parts], joining_s, files


def main(rows: int, numbers: list[int]) -> None:
    """Print a line for each number of shards."""
    with tempfile.TemporaryDirectory() as scratch:
        source = write_source(Path(scratch) / "source", rows).dir
        whole_s, whole = 0.0, dict[str, bytes]()
        for turn, number in enumerate(numbers):
            cpu, joining_s, files = divided(Path(scratch) / str(turn), source, rows, number)
            whole_s, whole = whole_s or sum(cpu), whole or files
            us = 1e6 * sum(cpu) / rows / CALLS_PER_ROW
            print(
                f"{number} shards: {us:.0f} us of CPU a call, the longest {max(cpu):.2f} s, joining a step {joining_s:.2f} s; "
                f"at best {whole_s / (max(cpu) + joining_s):.2f}x the first; the same bytes: {files == whole}",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        carried_out(*pickle.loads(Path(sys.argv[1]).read_bytes()))
    else:
        main(int(sys.argv[1]), [int(number) for number in sys.argv[2:]])
