"""Whole processes, from the start of the command to its end: caiflow, a bare script on vLLM, and a distilabel pipeline.

Each loads what it needs and does the even chain, 32 tokens an answer; they take turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.chain import CALLS, CRITIQUE, REVISION, make_work

TESTS = Path(__file__).parents[1]
DISTILABEL = "CAIFLOW_BENCH_DISTILABEL"
"""Names a Python that has distilabel: it needs other versions of the libraries than caiflow."""
_SPEC = """\
caiflow: 1
name: chain
constitution: constitution.yaml
models:
  base: {{source: {model}, engine: {engine}, engine_args: {{max_model_len: 4096}}}}
steps:
  source:   {{op: load, source: prompts.jsonl}}
  response: {{op: generate, input: source, model: base, sampling: {{max_tokens: 32}}}}
  critique: {{op: critique, input: response, model: base, sampling: {{max_tokens: 32}}}}
  revision: {{op: revise, input: critique, model: base, sampling: {{max_tokens: 32}}}}
"""


def write_spec(folder: Path, model: Path, rows: int, engine: str) -> Path:
    """Write a spec with its prompts and a constitution of one principle, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": prompt}) for prompt in make_work(rows, "even").prompts]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    principle = json.dumps({"id": "p1", "critique": CRITIQUE, "revision": REVISION})
    (folder / "constitution.yaml").write_text(
        f"caiflow_constitution: 1\nname: one\nprinciples: [{principle}]\n", encoding="utf-8"
    )
    spec = folder / f"{engine}.yaml"
    spec.write_text(_SPEC.format(model=model, engine=engine), encoding="utf-8")
    return spec


def timed(command: list[str], **environment: str) -> float:
    """Run a command to its end and return its seconds.

    Raises:
        RuntimeError: it failed; the message has the end of what it said.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=TESTS, env={**kept, **environment}, capture_output=True, text=True, timeout=1200)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return seconds


def contenders(model: Path, scratch: Path, rows: int) -> dict[str, Callable[[int], float]]:
    """Return what is compared, each run from nothing and timed; the number makes its folders fresh."""

    def caiflow(engine: str) -> Callable[[int], float]:
        def run(number: int) -> float:
            spec = write_spec(scratch / "spec", model, rows, engine)
            out, home = scratch / f"{engine}{number}", scratch / f"{engine}-home{number}"
            command = [sys.executable, "-m", "caiflow.engine.cli", "run", str(spec), "--out", str(out)]
            seconds = timed(command, CAIFLOW_HOME=str(home))
            loads = _engine_loads(out)
            if loads != 1:
                raise RuntimeError(f"{out}: the engine was loaded {loads} times, not once")
            return seconds

        return run

    def script(python: str, module: str, **environment: str) -> Callable[[int], float]:
        command = [python, str(TESTS / "benchmarks" / module), str(model), str(rows)]
        return lambda number: timed(command, PYTHONPATH=str(TESTS), **environment)

    found = {"caiflow_vllm": caiflow("vllm"), "caiflow_transformers": caiflow("transformers")}
    found["bare_vllm"] = script(sys.executable, "bare_vllm.py")
    if os.environ.get(DISTILABEL):
        threads = str(max(1, (os.cpu_count() or 1) // CALLS))  # it runs a model per task, side by side
        found["distilabel"] = script(os.environ[DISTILABEL], "distilabel_chain.py", OMP_NUM_THREADS=threads)
    else:
        print(f"distilabel: left out; {DISTILABEL} names no Python that has it", file=sys.stderr)
    return found


def _engine_loads(out: Path) -> int:
    events = (json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return sum(event.get("event") == "engine_ready" for event in events)


PAIRS = (
    ("caiflow_vllm", "bare_vllm", "caiflow on vLLM, against a bare LLM.chat script"),
    ("caiflow_transformers", "bare_vllm", "caiflow on transformers, against a bare LLM.chat script"),
    ("caiflow_transformers", "distilabel", "caiflow on transformers, against distilabel on transformers"),
)


def measure(model: Path, scratch: Path, rows: int, repeats: int) -> list[dict[str, Any]]:
    """Return a line per comparison; contenders take turns."""
    runs = contenders(model, scratch, rows)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run(repeat))
    return [_line(title, seconds[ours], seconds[theirs], rows) for ours, theirs, title in PAIRS if theirs in seconds]


def _line(title: str, ours: list[float], theirs: list[float], rows: int) -> dict[str, Any]:
    mine, other = statistics.median(ours), statistics.median(theirs)
    spreads: Mapping[str, str] = {
        f"spread_{side}": f"{min(given):.1f} to {max(given):.1f}" for side, given in (("ours", ours), ("theirs", theirs))
    }
    line = {"name": f"cold start to finish, {rows} rows x 3 calls: {title}", "ours": round(mine, 1), "theirs": round(other, 1)}
    return {**line, "unit": "s", "ratio": round(other / mine, 3), "runs": len(ours), **spreads}
