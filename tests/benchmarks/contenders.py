"""The ways of running the chain that are compared; each stays in a process of its own, warm, and does the work when told to.

`python -m benchmarks.contenders GROUP MODEL` within tests/ reads orders, JSON lines, from its input and answers each with a
line that begins with MARK. The library's `LLM` and caiflow share one vLLM engine: same memory, settings and step counter.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from benchmarks.chain import CALLS, CONTEXT, Message, Work, first_turn, make_work, next_turn

MARK = "@@"
SLOTS = 128
"""Rows that decode together."""


class Contender(Protocol):
    """Does all of the work once, the model being loaded, and returns the answers [N][3]."""

    def __call__(self, work: Work) -> Sequence[Sequence[str]]: ...


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


def staged(llm: Any, work: Work) -> list[list[str]]:
    """Run stage by stage, each stage one `LLM.chat` over all rows, as a script does."""
    from vllm import SamplingParams

    talks = [first_turn(prompt) for prompt in work.prompts]
    answers: list[list[str]] = [[] for _ in talks]
    for stage in range(CALLS):
        params = [SamplingParams(temperature=0, max_tokens=lengths[stage]) for lengths in work.lengths]
        for place, output in enumerate(llm.chat(talks, params, use_tqdm=False)):
            answers[place].append(output.outputs[0].text)
        if stage + 1 < CALLS:
            talks = [next_turn(talk, said[-1], stage + 1) for talk, said in zip(talks, answers, strict=True)]
    return answers


def streamed(engine: Any, work: Work) -> list[list[str]]:
    """Run as caiflow does: rows through three steps, with ledger and artifacts, on the engine's host."""
    from benchmarks.turns import flow_steps, write_source
    from caiflow.engine.flow import Flow
    from caiflow.engine.ledger import Ledger
    from caiflow.engine.llm.client import EngineClient, LocalLink
    from caiflow.engine.llm.host import EngineHost
    from caiflow.engine.rows import Rows, RowsWriter

    async def run(folder: Path, host: EngineHost) -> None:
        steps = flow_steps()
        source = write_source(folder / "source", work)
        with ExitStack() as stack:
            ledgers = {step.namespace: stack.enter_context(Ledger(folder / "ledger", step.namespace)) for step in steps}
            columns = dict(source.columns)
            writers = {}
            for step in steps:
                columns |= step.operator.writes()
                writers[step.name] = stack.enter_context(RowsWriter(folder / step.name, dict(columns)))
            async with EngineClient([LocalLink(host)]) as client:
                await Flow(steps, ledgers, {"m": client}, writers).run(source)

    with tempfile.TemporaryDirectory() as scratch:
        host = EngineHost(lambda: _Lent(engine))
        try:
            asyncio.run(run(Path(scratch), host))
        finally:
            host.close()
        rows = Rows(Path(scratch) / f"turn{CALLS - 1}").pylist()
    return [[row[f"answer{stage}"] for stage in range(CALLS)] for row in rows]


class _Lent:
    """An engine that its host may not close, since the next run goes on with it."""

    def __init__(self, engine: Any) -> None:
        self.capacity, self.submit, self.step = engine.capacity, engine.submit, engine.step

    def close(self) -> None:
        """Leave the engine as it is."""


async def chained(engine: Any, tokenizer: Any, work: Work) -> list[list[str]]:
    """Run each row's three calls one after the other, all rows at once, on vLLM's asynchronous engine."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def row(place: int) -> list[str]:
        talk: list[Message] = first_turn(work.prompts[place])
        said: list[str] = []
        for stage in range(CALLS):
            ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
            params = SamplingParams(
                temperature=0, max_tokens=work.lengths[place][stage], output_kind=RequestOutputKind.FINAL_ONLY
            )
            async for output in engine.generate({"prompt_token_ids": ids}, params, f"{place}-{stage}-{time.monotonic_ns()}"):
                final = output
            said.append(final.outputs[0].text)
            talk = next_turn(talk, said[-1], stage + 1) if stage + 1 < CALLS else talk
        return said

    limit = asyncio.Semaphore(4 * SLOTS)

    async def limited(place: int) -> list[str]:
        async with limit:
            return await row(place)

    return list(await asyncio.gather(*(limited(place) for place in range(len(work.prompts)))))


def one_by_one(model: Any, tokenizer: Any, work: Work) -> list[list[str]]:
    """Run one prompt at a time with the library's `generate`, as notebooks do."""
    answers = []
    for prompt, lengths in zip(work.prompts, work.lengths, strict=True):
        talk, said = first_turn(prompt), []
        for stage in range(CALLS):
            given = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            given = given.to(model.device)
            out = model.generate(**given, max_new_tokens=lengths[stage], do_sample=False)
            said.append(tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
            talk = next_turn(talk, said[-1], stage + 1) if stage + 1 < CALLS else talk
        answers.append(said)
    return answers


def vllm_group(model: str) -> Mapping[str, Contender]:
    """Load one vLLM engine for the stage-by-stage loop and for caiflow; each begins with an empty prefix cache."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    import torch._dynamo
    from vllm import LLM

    from caiflow.engine.llm.load import load_renderer
    from caiflow.engine.llm.vllm import VLLMEngine
    from caiflow.engine.operator import ModelSource

    if not torch.cuda.is_available():
        torch._dynamo.config.disable = True
    llm = LLM(**vllm_arguments(model))
    ours = VLLMEngine(llm.llm_engine, load_renderer(ModelSource(path=model, identity="m")))
    counter = StepCounter(llm.llm_engine)

    def fresh(run: Any, engine: Any) -> Contender:
        def do(work: Work) -> Sequence[Sequence[str]]:
            llm.reset_prefix_cache()
            answers: Sequence[Sequence[str]] = run(engine, work)
            return answers

        do.counter = counter  # type: ignore[attr-defined]
        return do

    return {"staged": fresh(staged, llm), "caiflow": fresh(streamed, ours)}


def async_group(model: str) -> Mapping[str, Contender]:
    """Start vLLM's asynchronous engine, its core in a process of its own, as that engine wants it."""
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from transformers import AutoTokenizer
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def start() -> Any:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**vllm_arguments(model)))

    engine = loop.run_until_complete(start())
    tokenizer = AutoTokenizer.from_pretrained(model)

    def do(work: Work) -> Sequence[Sequence[str]]:
        async def run() -> Sequence[Sequence[str]]:
            await engine.reset_prefix_cache()
            return await chained(engine, tokenizer, work)

        return loop.run_until_complete(run())

    do.close = engine.shutdown  # type: ignore[attr-defined]
    return {"async": do}


def transformers_group(model: str) -> Mapping[str, Contender]:
    """Load a model for the library's `generate`, and caiflow's own engine on transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from caiflow.engine.llm.load import load_engine
    from caiflow.engine.operator import ModelSource

    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForCausalLM.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    engine = load_engine(ModelSource(path=model, identity="m", engine="transformers"))

    def notebook(work: Work) -> Sequence[Sequence[str]]:
        with torch.inference_mode():
            return one_by_one(plain, tokenizer, work)

    return {"one_by_one": notebook, "caiflow_transformers": lambda work: streamed(engine, work)}


GROUPS = {"vllm": vllm_group, "async": async_group, "transformers": transformers_group}


def main() -> None:
    """Load a group, then do the work of each order: {contender, rows, lengths}."""
    group = GROUPS[sys.argv[1]](sys.argv[2])
    print(MARK + "{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        contender = group[order["contender"]]
        work = make_work(order["rows"], order["lengths"])
        counter = getattr(contender, "counter", None)
        steps = counter.steps if counter else 0
        began = time.perf_counter()
        answers = contender(work)
        seconds = time.perf_counter() - began
        characters = sum(len(text) for row in answers for text in row)
        found = {"seconds": seconds, "tokens": work.tokens, "rows": len(answers), "characters": characters}
        found["steps"] = counter.steps - steps if counter else 0
        print(MARK + json.dumps(found), flush=True)
    for contender in group.values():
        getattr(contender, "close", lambda: None)()


if __name__ == "__main__":
    main()
