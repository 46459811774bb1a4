"""Counts what vLLM computes where its cache is scarce: tokens of prompts over the least there could be, and steps.

Rows of long dialogues are answered, criticised and revised, later calls behind two long examples that all rows share. The ideal
computes each block of a prompt once: a trie of all prompts and answers, in blocks, in the order in which they were asked. Run
`python -m benchmarks.prefixes` within tests/. On a busy machine rows may come back late; so the same calls are counted again by
a model of vLLM's scheduler, in which they don't: those counts repeat exactly. It tells, too, what calls take as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.chain import Lengths, Message, save_model
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.stream import Flow
from caiflow.engine.llm.base import ModelSource, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.order.blocks import Prefixes
from caiflow.engine.operator import ModelRowParams, RowLLM, RowOperator, StepContext
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger
from support import paged

TESTS = Path(__file__).parents[1]
BLOCK, LONGEST, EXAMPLES = 32, 64, 724
"""Tokens of a cache block, of the longest answer, and, about, of the examples."""
WORDS = ("take", "the", "old", "door", "off", "and", "paint", "it", "first", "then", "wait", "two", "days", "or", "three")


class Case(NamedTuple):
    """How many rows make how many calls each, and what the engine has for them."""

    rows: int
    calls: int
    cache_tokens: int
    slots: int
    lengths: Lengths

    def __str__(self) -> str:
        return f"{self.rows} rows x {self.calls} calls, {self.slots} slots, cache of {self.cache_tokens} tokens, {self.lengths}"


CASES = [Case(*sizes, lengths) for sizes in ((80, 3, 10_000, 16), (40, 9, 10_000, 16)) for lengths in ("even", "long_tailed")]


class RoundParams(ModelRowParams):
    """Fields of `round`."""

    stage: int


class Round(RowOperator[RoundParams]):
    """Makes one of a row's calls, behind the examples from the second on."""

    name = "round"
    params_type = RoundParams

    def reads(self) -> Sequence[str]:
        """Return the dialogue, the answers so far, and the length."""
        return ["question", *(f"answer{before}" for before in range(self.params.stage)), f"length{self.params.stage}"]

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the answer's column."""
        return {f"answer{self.params.stage}": "text"}

    async def row(self, row: Row, llm: RowLLM) -> Row:
        """Ask."""
        talk: list[Message] = [{"role": "user", "content": row["question"]}]
        for before in range(self.params.stage):
            asked = "Say what is wrong with it." if before % 2 == 0 else "Write it anew."
            talk += [{"role": "assistant", "content": row[f"answer{before}"]}, {"role": "user", "content": asked}]
        if self.params.stage:
            talk = [{"role": "user", "content": spoken(EXAMPLES, 0)}, {"role": "assistant", "content": "Yes."}, *talk]
        answer = await llm.chat(talk, Sampling(max_tokens=row[f"length{self.params.stage}"]))  # type: ignore[arg-type]
        return {f"answer{self.params.stage}": answer.text}


def spoken(words: int, seed: int) -> str:
    """Return words in some order, the same for the same seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def source(folder: Path, case: Case) -> Rows:
    """Write rows of 150 to 900 words, 350 in the middle, with the lengths of their answers."""
    dice = random.Random(7)
    types: dict[str, ColumnType] = {"uid": "text", "question": "text"}
    types |= {f"length{stage}": "integer" for stage in range(case.calls)}
    with RowsWriter(folder, types) as writer:
        for place in range(case.rows):
            words = min(900, max(150, round(dice.lognormvariate(5.8, 0.4))))
            row = {"uid": f"u{place}", "question": spoken(words, place + 1)}
            for stage in range(case.calls):
                even = case.lengths == "even"
                row[f"length{stage}"] = LONGEST if even else max(1, min(LONGEST, round(dice.lognormvariate(2.3, 1.0))))
            writer.write_rows([row])
    return Rows(folder)


def steps(case: Case) -> list[FlowStep]:
    """Return the row's calls as steps, each reading the one before."""
    found = []
    for stage in range(case.calls):
        before = f"round{stage - 1}" if stage else "source"
        operator = Round(RoundParams(input=before, model="m", stage=stage), StepContext(seed=1))
        found.append(FlowStep(f"round{stage}", operator, before, f"round{stage}", "round-m", "m", "m", 1, operator.params))
    return found


class Counter:
    """Counts what a vLLM engine's scheduler has computed, by standing in for its `schedule`."""

    def __init__(self, engine: Any) -> None:
        self.tokens = self.steps = 0
        self.prompts: list[Any] = []
        self._scheduler = engine.engine_core.engine_core.scheduler
        self._schedule, self._scheduler.schedule = self._scheduler.schedule, self
        self._add, self._scheduler.add_request = self._scheduler.add_request, self._added

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Schedule, and count."""
        planned = self._schedule(*given, **named)
        self.tokens += planned.total_num_scheduled_tokens
        self.steps += bool(planned.total_num_scheduled_tokens)
        return planned

    def _added(self, request: Any) -> None:
        self.prompts.append(request)
        self._add(request)

    def ideal(self) -> int:
        """Return the tokens of prompts that have to be computed at least."""
        prefixes, total = Prefixes(BLOCK), 0
        for request in self.prompts:
            total += prefixes.computed(request.prompt_token_ids)
            prefixes.learn(request.all_token_ids)
        return total

    def rows(self) -> dict[int, list[paged.Call]]:
        """Return the calls that each row made, in its order."""
        found: dict[int, list[paged.Call]] = defaultdict(list)
        for request in self.prompts:
            prompt = list(request.prompt_token_ids)
            found[request.priority].append(paged.Call(prompt, list(request.all_token_ids)[len(prompt) :]))
        return found

    def decoded(self) -> int:
        """Return the tokens of answers that were computed: all but each answer's first, which comes of its prompt."""
        return sum(len(request.all_token_ids) - len(request.prompt_token_ids) - 1 for request in self.prompts)


def count(case: Case, model: Path) -> dict[str, Any]:
    """Return what vLLM computed for a case, in this process."""
    from caiflow.engine.llm.load import load_engine

    arguments = {"max_num_seqs": case.slots, "block_size": BLOCK, "kv_cache_memory_bytes": case.cache_tokens * 4096}
    engine_args = {**arguments, "max_model_len": 4096, "max_num_batched_tokens": 4096}
    loaded: list[Any] = []

    def start() -> Any:
        loaded.append(load_engine(ModelSource(str(model), "m", engine="vllm", options={"engine_args": engine_args})))
        return loaded[0]

    host = EngineHost(start)
    counter = Counter(loaded[0]._engine)
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(carry_out(host, case, Path(scratch)))
    host.close()
    computed, ideal = counter.tokens - counter.decoded(), counter.ideal()
    alike = {"slots": case.slots, "blocks": case.cache_tokens // BLOCK - 1, "size": BLOCK}
    by_room = paged.count(counter.rows(), gated=True, **alike)._asdict()
    as_come = paged.count(counter.rows(), gated=False, **alike)._asdict()
    return {"computed": computed, "ideal": ideal, "steps": counter.steps, "modelled": by_room, "as they come": as_come}


async def carry_out(host: EngineHost, case: Case, folder: Path) -> None:
    chain = steps(case)
    rows = source(folder / "source", case)
    with ExitStack() as stack:
        ledgers = {step.namespace: stack.enter_context(Ledger(folder / "ledger", step.namespace)) for step in chain}
        columns, writers = dict(rows.columns), {}
        for step in chain:
            columns |= step.operator.writes()
            writers[step.name] = stack.enter_context(RowsWriter(folder / step.name, dict(columns)))
        async with EngineClient([LocalLink(host)]) as client:
            await Flow(chain, ledgers, {"m": client}, writers).run(rows)


def measure(cases: Sequence[int] = range(len(CASES))) -> list[dict[str, Any]]:
    """Count each case in a process of its own, and return it beside its ideal."""
    lines = []
    for place in cases:
        command = [sys.executable, "-m", "benchmarks.prefixes", str(place)]
        done = subprocess.run(command, cwd=TESTS, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        modelled, as_come = found["modelled"], found["as they come"]
        for what, unit, ours, theirs in (
            ("prefill", "tokens", modelled["computed"], modelled["ideal"]),
            ("prefill as vLLM ran here", "tokens", found["computed"], found["ideal"]),
            ("steps, over calls as they come", "steps", modelled["steps"], as_come["steps"]),
            ("steps as vLLM ran here, over calls as they come", "steps", found["steps"], as_come["steps"]),
        ):
            line = {"name": f"floor of {what}, {CASES[place]}", "ours": ours, "theirs": theirs, "unit": unit}
            lines.append({**line, "ratio": round(theirs / ours, 3), "runs": 1})
    return lines


def main() -> None:
    """Count every case, or those given by number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "model")
        for place in given.cases or range(len(CASES)):
            print(json.dumps({"case": str(CASES[place]), **count(CASES[place], model)}), flush=True)


if __name__ == "__main__":
    main()
