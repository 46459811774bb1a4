"""Measures seeded draws inside vLLM against vLLM's own per-request seeds: one engine, the same requests, in turns.

CPU time, since a busy machine stretches the clock; the ratio is of the medians. Threads wait as in caiflow's workers, asleep:
spinning ones would be counted too. On vLLM's first model runner, where there is no GPU. Run `python -m benchmarks.draws` within
tests/.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import Request, Sampling
from caiflow.engine.llm.load import load_engine
from caiflow.engine.plan.model_identity import resolve_model
from caiflow.engine.run.on_ray.entering import WORKER_ENV
from caiflow.engine.spec.grammar import ModelEntry

ROWS, TOKENS, REPEATS = 128, 48, 9
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "top-p": {"top_p": 0.9}, "top-k": {"top_k": 40, "top_p": 0.9}}
ARGS = {"max_model_len": 512, "kv_cache_memory_bytes": 256 << 20}


def requests(way: str) -> list[Request]:
    sampling = Sampling(temperature=1.5, max_tokens=TOKENS, **WAYS[way])
    return [Request(f"Please explain step {row} of it", sampling, seed=row) for row in range(ROWS)]


def tokens_per_s(engine: Any, draws: str, asked: list[Request]) -> float:
    """Return how many tokens a second of CPU time gives."""
    engine._draws = draws  # the processor leaves alone what brings vLLM's own seed
    engine.submit(list(enumerate(asked)))
    began, answered, tokens = time.process_time(), 0, 0
    while answered < len(asked):
        finished = engine.step()
        answered += len(finished)
        tokens += sum(answer.completion_tokens for _, answer in finished)
    return tokens / (time.process_time() - began)


def measure(repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Return a line for each way of sampling; none where vLLM isn't installed."""
    if not find_spec("vllm"):
        return []
    environment = {**os.environ, **WORKER_ENV, "OMP_NUM_THREADS": "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    command = [sys.executable, "-m", "benchmarks.draws", str(repeats)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=True)
    lines: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return lines


def measure_here(repeats: int) -> list[dict[str, Any]]:
    """Measure in this process, whose threads wait as its environment says."""
    entry = ModelEntry(source="tiny", engine="vllm", dtype="float32", engine_args=ARGS)
    engine = load_engine(resolve_model("tiny", entry, Path()))
    lines = []
    for way in WAYS:
        asked = requests(way)
        found: dict[str, list[float]] = {"caiflow": [], "vllm": []}
        for turn in range(repeats + 1):
            for draws, kept in found.items():
                figure = tokens_per_s(engine, draws, asked)
                if turn:  # the first is to warm up
                    kept.append(figure)
        ours, theirs = (statistics.median(kept) for kept in found.values())
        lines.append(
            {"name": f"seeded draws, {way}, vLLM's first runner", "ours": round(ours), "theirs": round(theirs),
             "unit": "tokens/CPU-s", "ratio": round(ours / theirs, 2), "runs": repeats}
        )  # fmt: skip
    engine.close()
    return lines


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure_here(int(sys.argv[1]))))
    else:
        print(json.dumps(measure(), indent=1))
