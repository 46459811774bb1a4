"""Runs of specs whose steps are all tables, in this process: real spec, identity, operators, store and lock, without Ray."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from caiflow.engine.identity import digest
from caiflow.engine.operator import Job, TableOperator
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.lock import make_lock, write_lock
from caiflow.engine.plan.relocate import portable
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store

SPEC = """\
caiflow: 1
name: short
constitution: rules.yaml
steps:
  red:   {op: load, source: red.jsonl}
  clean: {op: filter, input: red, drop: [{length: {column: response, max: 12}}]}
"""
RULES = "caiflow_constitution: 1\nname: mine\nprinciples:\n  - {id: kind, rule: be kind}\n"


def write_spec(folder: Path, rows: int = 20) -> Path:
    """Write a small spec with its data and constitution; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": f"Question {number}?", "response": "r" * number}) + "\n" for number in range(1, rows + 1)]
    (folder / "red.jsonl").write_text("".join(lines))
    (folder / "rules.yaml").write_text(RULES)
    (folder / "spec.yaml").write_text(SPEC)
    return folder / "spec.yaml"


def run_tables(spec_path: Path, run_dir: Path, store: Store, allowed: Collection[Path] = ()) -> Resolver:
    """Carry out a spec of table steps and leave what a run leaves; return the resolver with all its artifacts."""
    spec = load_spec(spec_path, allowed=allowed)
    resolver = Resolver(spec, store)
    statuses = {}
    for step in resolver.order:
        components, artifact = resolver.settle(step)
        statuses[step.name] = "cached" if artifact else "done"
        if artifact is None:
            operator = spec.operators[step.name]
            assert isinstance(operator, TableOperator)
            staged = store.stage(step.name)
            inputs = {name: Rows(resolver.artifacts[name].path) for name in resolver.edges(step)}
            with RowsWriter(staged) as out:
                operator.table(Job(staged, inputs), out)
            made = {"kind": "rows", "op": step.op, "components": components, "rows_out": out.num_rows}
            resolver.artifacts[step.name] = store.seal(digest(components), staged, made)
    leave_run(resolver, run_dir, statuses)
    return resolver


def leave_run(resolver: Resolver, run_dir: Path, statuses: Mapping[str, str]) -> None:
    """Leave the folder of a run whose artifacts are all there; `statuses` has what became of each step."""
    (run_dir / "steps").mkdir(parents=True, exist_ok=True)
    steps = {}
    for step in resolver.order:
        artifact = resolver.artifacts[step.name]
        (run_dir / "steps" / step.name).symlink_to(artifact.path)
        steps[step.name] = {"op": step.op, "digest": artifact.digest, "status": statuses.get(step.name, "done")}
    (run_dir / "run.json").write_text(json.dumps({"name": resolver.spec.name, "status": "done", "steps": steps}))
    (run_dir / "spec.yaml").write_text(portable(resolver.spec))
    write_lock(run_dir, make_lock(resolver))
    reached = [artifact.digest for artifact in resolver.artifacts.values()]
    resolver.store.record_run(resolver.spec.name, run_dir, artifacts=reached)
