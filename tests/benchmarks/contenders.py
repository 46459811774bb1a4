"""The ways of running the chain that are compared; each stays in a process of its own, warm, and does the work when told to.

`python -m benchmarks.contenders NAME MODEL` within tests/ reads orders, JSON lines, from its input and answers each with a
line that begins with MARK. Each begins every order with an empty prefix cache. Contenders on vLLM have the same memory,
slots and settings; caiflow's are loaded and run as a run's engine is: in their own thread of an EngineHost.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.chain import CONTEXT, Work, make_work
from benchmarks.ways import SLOTS, Answers, chained, one_by_one, staged, streamed

MARK = "@@"
_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Contender:
    """A loaded model with one way of running the chain; `steps` counts the steps of vLLM's scheduler, where it can be asked."""

    run: Callable[[Work], Answers]
    steps: Callable[[], int] = lambda: 0
    close: Callable[[], Any] = lambda: None


class StepCounter:
    """Counts the steps of a vLLM engine by standing in for its `step`."""

    def __init__(self, engine: Any) -> None:
        self.steps = 0
        self._step = engine.step
        engine.step = self

    def __call__(self) -> Any:
        self.steps += 1
        return self._step()


def vllm_arguments(model: str) -> dict[str, Any]:
    """Return the engine's arguments, the same for all contenders on vLLM."""
    import torch

    given: dict[str, Any] = {"model": model, "max_model_len": CONTEXT, "max_num_seqs": SLOTS, "disable_log_stats": True}
    if not torch.cuda.is_available():
        given |= {"dtype": "float32", "enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 2 << 30}
    return given


def load_staged(model: str) -> Contender:
    """Load vLLM's `LLM`, its engine in this process, which is the faster way."""
    os.environ |= {**_QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import torch._dynamo
    from vllm import LLM

    if not torch.cuda.is_available():
        torch._dynamo.config.disable = True
    llm = LLM(**vllm_arguments(model))
    counter = StepCounter(llm.llm_engine)

    def run(work: Work) -> Answers:
        llm.reset_prefix_cache()
        return staged(llm, work)

    return Contender(run, lambda: counter.steps)


def load_async(model: str) -> Contender:
    """Start vLLM's asynchronous engine: its core in a process of its own, its worker in that one, which is the fastest way."""
    os.environ |= {**_QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from transformers import AutoTokenizer
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def start() -> Any:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**vllm_arguments(model)))

    engine = loop.run_until_complete(start())
    tokenizer = AutoTokenizer.from_pretrained(model)

    async def run(work: Work) -> Answers:
        await engine.reset_prefix_cache()
        return await chained(engine, tokenizer, work)

    return Contender(lambda work: loop.run_until_complete(run(work)), close=engine.shutdown)


def load_one_by_one(model: str) -> Contender:
    """Load a model for the library's `generate`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForCausalLM.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def run(work: Work) -> Answers:
        with torch.inference_mode():
            return one_by_one(plain, tokenizer, work)

    return Contender(run)


def load_caiflow(kind: str, model: str) -> Contender:
    """Load caiflow's own engine on vLLM or on transformers."""
    from caiflow.engine.llm.base import ModelSource
    from caiflow.engine.llm.host import EngineHost
    from caiflow.engine.llm.load import load_engine

    options = {"engine_args": {name: value for name, value in vllm_arguments(model).items() if name != "model"}}
    source = ModelSource(path=model, identity="m", engine=kind, options=options if kind == "vllm" else {})
    loaded: list[Any] = []

    def start() -> Any:
        loaded.append(load_engine(source))
        return loaded[0]

    host = EngineHost(start)
    if kind != "vllm":
        return Contender(lambda work: streamed(host, work), close=host.close)
    vllm = loaded[0]._engine
    counter = StepCounter(vllm)

    def run(work: Work) -> Answers:
        vllm.reset_prefix_cache()
        return streamed(host, work)

    return Contender(run, lambda: counter.steps, host.close)


LOADERS: Mapping[str, Callable[[str], Contender]] = {
    "staged": load_staged,
    "async": load_async,
    "one_by_one": load_one_by_one,
    "caiflow_vllm": lambda model: load_caiflow("vllm", model),
    "caiflow_transformers": lambda model: load_caiflow("transformers", model),
}


def main() -> None:
    """Load a contender, then do the work of each order: {rows, lengths}."""
    contender = LOADERS[sys.argv[1]](sys.argv[2])
    print(MARK + "{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        work = make_work(order["rows"], order["lengths"])
        steps, began, used = contender.steps(), time.perf_counter(), time.process_time()
        answers = contender.run(work)
        found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used, "rows": len(answers)}
        found |= {"tokens": work.tokens, "steps": contender.steps() - steps}
        print(MARK + json.dumps(found | {"characters": sum(len(text) for row in answers for text in row)}), flush=True)
    contender.close()


if __name__ == "__main__":
    main()
