"""The ways of running the chain, each given a loaded model: what people write by hand, and caiflow's own.

All ask greedily for as many tokens as the work says. Loads nothing and measures nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.chain import CALLS, Message, Work, first_turn, next_turn

if TYPE_CHECKING:
    from caiflow.engine.llm.host import EngineHost

SLOTS = 128
"""Rows that decode together."""
Answers = Sequence[Sequence[str]]


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


def streamed(host: EngineHost, work: Work) -> Answers:
    """Run as caiflow does: rows through three steps, with ledger and artifacts, on the engine's host."""
    from benchmarks.turns import flow_steps, write_source
    from caiflow.engine.flow.stream import Flow
    from caiflow.engine.llm.client import EngineClient
    from caiflow.engine.llm.host import LocalLink
    from caiflow.engine.rows.folder import Rows, RowsWriter
    from caiflow.engine.store.ledger import Ledger

    async def run(folder: Path) -> None:
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
        asyncio.run(run(Path(scratch)))
        rows = Rows(Path(scratch) / f"turn{CALLS - 1}").pylist()
    return [[row[f"answer{stage}"] for stage in range(CALLS)] for row in rows]


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
