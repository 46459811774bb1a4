"""Runs of a small spec in this process: real spec, plan, resolver, operators, flow, ledger and store, without Ray.

The model is a function of the request behind a `Link`, so that a run takes milliseconds and what it asked is known.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Answer, Completion, Link, Request
from caiflow.engine.operator import Job, MetricsOperator, TableOperator
from caiflow.engine.plan.components import Resolver
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.run.flows import FlowUnit
from caiflow.engine.run.units import MeasureUnit, StepResult
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store

SPEC = """\
caiflow: 1
name: small
constitution: rules.yaml
models: {m: {source: served, base_url: "http://127.0.0.1:9/v1"}}
steps:
  rows:     {op: load, source: rows.jsonl}
  answer:   {op: generate, input: rows, model: m, retries: 0}
  critique: {op: critique, input: answer, model: m, retries: 0}
  kept:     {op: filter, input: critique, drop: [{length: {column: critique, min: 1}}]}
"""


def write_spec(folder: Path, prompts: Sequence[str], principles: Sequence[str]) -> Path:
    """Write the spec with these prompts and principles; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    rules = [{"id": f"p{number}", "critique": text, "revision": "Mend it."} for number, text in enumerate(principles)]
    (folder / "rules.yaml").write_text(json.dumps({"caiflow_constitution": 1, "name": "rules", "principles": rules}))
    (folder / "spec.yaml").write_text(SPEC)
    return folder / "spec.yaml"


def says(request: Request) -> Answer:
    """Answer with what was asked, so that another prompt or principle shows in the text."""
    asked = request.prompt if isinstance(request.prompt, str) else json.dumps(request.prompt)
    return Completion(f"said {digest([asked, request.seed])[:12]}", "stop", 3, 2)


@dataclass
class AskedLink:
    """A way to a model in this process: remembers what it answered, and answers no more after `most` answers."""

    most: int = 10**9
    says: Callable[[Request], Answer] = says
    answered: list[Request] = field(default_factory=list)
    capacity: int = 8
    waiting: str = ""
    _ready: list[tuple[int, Answer]] = field(default_factory=list)

    async def open(self) -> None:
        """Be there."""

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Answer at once; the answers wait to be collected."""
        for number, request in requests:
            if len(self.answered) < self.most:
                self.answered.append(request)
                self._ready.append((number, self.says(request)))
            else:
                self._ready.append((number, EngineError("the run was cut off", kind="spending_cap")))

    async def collect(self) -> list[tuple[int, Answer]]:
        """Return what was answered, or wait a little."""
        await asyncio.sleep(0 if self._ready else 0.002)
        ready, self._ready = self._ready, []
        return ready

    async def revive(self) -> None:
        """Never needed."""


def carry_out(
    spec_path: Path, store: Store, link: AskedLink, sample: int | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run a spec to its end; return the rows of its step `kept`, and what was said of damages.

    Raises:
        StepError: a step failed; what was done before is kept.
    """
    resolver, said = carried_out(spec_path, store, link, sample)
    return Rows(resolver.artifacts["kept"].path).pylist(), said


def carried_out(
    spec_path: Path, store: Store, link: Link, sample: int | None = None, model: str = "m"
) -> tuple[Resolver, list[str]]:
    """Run a spec to its end, as `carry_out` does; return the resolver with all its artifacts, and what was said of damages."""
    spec = load_spec(spec_path, sample=sample)
    resolver, said = Resolver(spec, store), list[str]()
    ledgers: set[str] = set()
    for step in resolver.order:
        if step.name in resolver.artifacts or resolver.settle(step)[1] is not None:
            continue
        operator = spec.operators[step.name]
        if isinstance(operator, TableOperator):
            staged = store.stage(step.name)
            with RowsWriter(staged) as out:
                operator.table(Job(staged, {name: Rows(resolver.artifacts[name].path) for name in resolver.edges(step)}), out)
            _seal(resolver, step, StepResult(staged, rows_out=out.num_rows))
            continue
        if isinstance(operator, MetricsOperator):
            inputs = {ref.name: resolver.artifacts[ref.name].path for ref in step.references() if ref.kind == "rows"}
            models = {ref.name: source for ref in step.references() if (source := resolver.model(ref.name)) is not None}
            place = store.stage(step.name), {name: [link] for name in models}, store.ledger_dir
            (result,) = MeasureUnit(step.name, operator, inputs, models, *place).run(lambda _: None).values()
            _seal(resolver, step, result)
            continue
        chain = [member for member in resolver.chain(step) if member.name not in resolver.artifacts]
        flow_steps = [found for found in map(resolver.flow_step, chain) if found is not None]
        ledgers |= {found.namespace for found in flow_steps}
        staged_by = {member.name: store.stage(member.name) for member in chain}
        source = resolver.artifacts[step.input].path
        unit = FlowUnit(flow_steps, source, {model: [link]}, staged_by, store.ledger_dir, resolver.cut_of(chain))
        results = unit.run(lambda event: said.append(event["text"]) if event.get("event") == "log" else None)
        for member in chain:
            if results[member.name].error or results[member.name].staged is None:
                raise StepError(results[member.name].error or "its input failed")
            _seal(resolver, member, results[member.name])
    run_dir = spec_path.parent / "run"
    run_dir.mkdir(exist_ok=True)
    reached = [artifact.digest for artifact in resolver.artifacts.values()]
    store.record_run(spec.name, run_dir, artifacts=reached, ledgers=ledgers)
    return resolver, [*said, *resolver.remade.values()]


def _seal(resolver: Resolver, step: Any, result: StepResult) -> None:
    components = resolver.components(step)
    assert result.staged is not None
    made = {"kind": "rows", "op": step.op, "components": components, "rows_out": result.rows_out, "counts": dict(result.counts)}
    resolver.artifacts[step.name] = resolver.store.seal(digest(components), result.staged, made)
