"""Rows that failed for a reason that may pass are asked again by the next run, and only they; a stricter bound is held to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.identity import digest
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.run.folder import RunFolder
from caiflow.engine.run.units import StepResult
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Artifact, Store
from caiflow.engine.store.journal import Journal
from support.bad_server import BadServer, bad_server, said

SPEC = """\
caiflow: 1
models: {{served: {{source: served, base_url: "{url}", concurrency: 1}}}}
steps:
  rows:   {{op: load, source: rows.jsonl}}
  answer: {{op: generate, input: rows, model: served, max_failed: {max_failed}, retries: 0}}
  kept:   {{op: filter, input: answer, drop: [{{length: {{column: response, min: 1}}}}]}}
"""
CHAIN = """\
caiflow: 1
models: {served: {source: served, base_url: "http://127.0.0.1:9"}}
steps:
  rows:   {op: load, source: rows.jsonl}
  answer: {op: generate, input: rows, model: served, max_failed: 1}
  second: {op: generate, input: answer, model: served}
"""


@pytest.fixture
def server() -> Iterator[BadServer]:
    with bad_server() as state:
        yield state


def carry_out(folder: Path, server: BadServer, ray: str, number: int, max_failed: int = 1) -> dict[str, Any]:
    """Run the spec on a Ray that is there and return its steps by name."""
    from caiflow.engine.run.runner import run
    from caiflow.engine.store.journal import read_run

    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in ("red", "blue", "tea"))
    )
    (folder / "spec.yaml").write_text(SPEC.format(url=server.url, max_failed=max_failed))
    run(load_spec(folder / "spec.yaml"), Store(folder / "home"), folder / f"run{number}", address=ray)
    steps: dict[str, Any] = read_run(folder / f"run{number}")["steps"]
    return steps


def plan(folder: Path) -> dict[str, Any]:
    return {step.name: step for step in make_plan(load_spec(folder / "spec.yaml"), Store(folder / "home")).steps}


@pytest.mark.parametrize("theirs", [2, 3])
def test_what_was_made_without_rows_that_another_run_has_is_made_anew(tmp_path: Path, theirs: int) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say red."}\n')
    (tmp_path / "spec.yaml").write_text(CHAIN)
    spec, store = load_spec(tmp_path / "spec.yaml"), Store(tmp_path / "home")
    resolver = Resolver(spec, store)

    def staged(rows: int) -> Path:
        with RowsWriter(store.stage("step"), {"uid": "text"}) as writer:
            writer.write_rows([{"uid": f"u{number}"} for number in range(rows)])
        return writer.dir

    def sealed(name: str, rows: int) -> Artifact:
        components = resolver.components(spec.steps[name])
        assert components is not None
        return store.seal(digest(components), staged(rows), {"kind": "rows", "rows_out": rows})

    resolver.artifacts["rows"] = sealed("rows", 3)
    sealed("answer", theirs)
    failed = {"failed": 1, "may_pass": 1}
    results = {"answer": StepResult(staged(2), 3, 2, counts=failed), "second": StepResult(staged(2), 2, 2)}
    with Journal(tmp_path / "run") as journal:
        steps = [spec.steps[name] for name in ("rows", "answer", "second")]
        folder = RunFolder(resolver, tmp_path / "run", journal, steps, threading.Event())
        folder.open()
        for step in steps[1:]:
            folder.start(step)
            folder.seal(step, results[step.name], results)
    assert resolver.artifacts["answer"].rows_out == theirs
    assert folder.status["second"] == ("done" if theirs == 2 else "waiting")
    assert ("second" in resolver.artifacts) == (theirs == 2)


@pytest.mark.slow
def test_a_row_that_failed_for_a_passing_reason_is_asked_again_and_only_it(
    server: BadServer, tmp_path: Path, ray_address: str
) -> None:
    server.reply = lambda body, n: (500, {}, "down") if "blue" in json.dumps(body) else said("fine")
    first = carry_out(tmp_path, server, ray_address, 1)
    assert (first["answer"]["rows_out"], first["answer"]["failed"]) == (2, 1)
    planned = plan(tmp_path)["answer"]
    assert (planned.state, planned.to_run) == ("partial", 1)
    assert "1 of its rows failed for a reason that may pass" in planned.reason
    server.reply = lambda body, n: said("well again")
    before = len(server.calls)
    second = carry_out(tmp_path, server, ray_address, 2)
    assert len(server.calls) == before + 1
    assert (second["answer"]["status"], second["answer"]["rows_out"]) == ("done", 3)
    assert second["kept"]["rows_out"] == 3
    assert {step.state for step in plan(tmp_path).values()} == {"cached"}


@pytest.mark.soak
def test_a_row_that_goes_on_failing_is_told_each_time(server: BadServer, tmp_path: Path, ray_address: str) -> None:
    server.reply = lambda body, n: (500, {}, "down") if "blue" in json.dumps(body) else said("fine")
    carry_out(tmp_path, server, ray_address, 1)
    before = len(server.calls)
    second = carry_out(tmp_path, server, ray_address, 2)
    assert (second["answer"]["status"], second["answer"]["failed"]) == ("done", 1)
    assert 1 <= len(server.calls) - before <= 4
    assert second["kept"]["status"] == "cached"


@pytest.mark.soak
def test_a_row_that_failed_for_good_stays_counted_and_a_stricter_bound_is_held_to(
    server: BadServer, tmp_path: Path, ray_address: str
) -> None:
    server.reply = lambda body, n: (400, {}, "context length exceeded") if "blue" in json.dumps(body) else said("fine")
    carry_out(tmp_path, server, ray_address, 1)
    before = len(server.calls)
    second = carry_out(tmp_path, server, ray_address, 2)
    assert (second["answer"]["status"], second["answer"]["failed"]) == ("cached", 1)
    third = carry_out(tmp_path, server, ray_address, 3, max_failed=0)
    assert third["answer"]["status"] == "failed"
    assert "context length" in third["answer"]["error"]
    assert len(server.calls) == before
