"""What every command prints with `--json` is what is declared, in its version, on real runs and specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.cli import COMMANDS, command_parser
from caiflow.engine.commands.parser import SHAPES
from caiflow.engine.commands.shapes.every import OUTPUTS
from caiflow.engine.store.artifacts import Store
from support.commands import command_here
from support.made_runs import made_run, plain_rows
from support.table_runs import run_tables, write_spec

LINES = {"run": "events", "show": "rows of a step"}
"""Commands that print lines of JSON, which have no shape."""
ELSEWHERE = {"merge", "import", "replay"}
"""Commands whose tests hold their output to the shape: they need a model that answers, or a batch's answers."""
SHORTER = "steps.clean.drop=[{length: {column: response, max: 3}}]"
CALLS: dict[str, list[list[str]]] = {
    "validate": [["validate", "spec.yaml"], ["validate", "wrong.yaml"]],
    "plan": [["plan", "spec.yaml"], ["plan", "quickstart"]],
    "try": [["try", "asks.yaml", "answer", "Hello"], ["try", "asks.yaml", "pair", "Hello"]],
    "why": [
        ["why", "spec.yaml", "clean"],
        ["why", "spec.yaml", "clean", "--set", "steps.clean.drop=[{length: {column: response, max: 3}}]"],
    ],
    "inspect": [["inspect", "spec.yaml"], ["inspect", "quickstart"]],
    "head": [["head", "red.jsonl"]],
    "runs": [["runs"]],
    "run": [["show", "made"], ["show", "tables"]],
    "figures": [["show", "made", "scores"]],
    "model": [["show", "made", "tuned"]],
    "diff": [["diff", "made", "other"], ["diff", "made", "tables"]],
    "verify": [["verify", "made"], ["verify", "tables"]],
    "gate": [["gate", "made", "gates.yaml"]],
    "report": [["report", "made", "--out", "report.html"]],
    "export": [["export", "tables", "handover"]],
    "push": [["push", "tables", "clean", "me/rows", "--dry-run"]],
    "ctl": [["ctl", "made"]],
    "tag": [["tag", "made"], ["tag", "made", "a", "b", "--note", "Look."]],
    "gc": [["gc", "--dry-run"]],
    "init": [["init", "quickstart", "started"]],
    "specs": [["specs"]],
    "ops": [["ops"]],
    "constitution": [["constitution", "show", "harmless"], ["constitution", "show", "harmless", "--id", "p03"]],
    "doctor": [["doctor"]],
}
ASKS = """\
caiflow: 1
constitution: rules.yaml
models: {m: {source: tiny}}
steps:
  red:    {op: load, source: red.jsonl}
  answer: {op: generate, input: red, model: m, samples: 2, sampling: {temperature: 1, max_tokens: 8}}
  pair:   {op: judge, input: answer, model: m, ties: keep}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    store = Store(folder / "home")
    run_tables(write_spec(folder), folder / "tables", store)
    record = json.loads((folder / "tables" / "run.json").read_text())
    begun = {"caiflow": "0.1.0", "started": 1.8e9, "finished": 1.8e9, "seconds": 3.0, "seed": 0, "notes": []}
    (folder / "tables" / "run.json").write_text(json.dumps({**begun, **record}))
    for name in ("made", "other"):
        made_run(folder / "home", folder / name, plain_rows(12 if name == "made" else 9))
        record = json.loads((folder / name / "run.json").read_text())
        (folder / name / "run.json").write_text(json.dumps({**record, "finished": 1.8e9}))
    (folder / "wrong.yaml").write_text("caiflow: 1\nsede: 1\nsteps: {}\n")
    (folder / "asks.yaml").write_text(ASKS)
    (folder / "gates.yaml").write_text("caiflow_gates: 1\nnotes: 0\nsteps: {judged: {order_flips: '< 0.4'}}\n")
    return folder


@pytest.mark.parametrize(("shape", "call"), [(shape, call) for shape, calls in CALLS.items() for call in calls], ids=str)
def test_a_command_prints_what_is_declared(place: Path, shape: str, call: list[str]) -> None:
    done = command_here(place, *call, "--json", CAIFLOW_HOME=str(place / "home"))
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["shape"] == f"{shape}/{SHAPES[shape]}", done.stderr
    OUTPUTS[shape].model_validate_json(done.stdout)
    assert set(OUTPUTS[shape].model_fields) <= set(found)


def test_every_shape_is_declared_and_tried_and_every_command_has_one() -> None:
    assert set(SHAPES) == set(OUTPUTS) == {*CALLS, *ELSEWHERE}
    commands = {call[0] for calls in CALLS.values() for call in calls} | ELSEWHERE
    assert set(COMMANDS) - commands - set(LINES) == {"serve", "schema", "completion", "view", "submit"}
    for command in {*commands, *LINES}:
        assert "--json" in command_parser(command).format_help(), command


def test_an_output_that_is_not_declared_is_noticed() -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        OUTPUTS["runs"].model_validate_json('{"shape": "runs/1", "runs": [], "more": 1}')


def test_the_page_has_every_declared_field(tmp_path: Path) -> None:
    import subprocess
    import sys

    subprocess.run([sys.executable, Path(__file__).parents[3] / "docs/make_pages.py", tmp_path], check=True)
    page = (tmp_path / "docs-pages/reference/json.md").read_text(encoding="utf-8")
    for shape, declared in OUTPUTS.items():
        section = page.partition(f"\n## {shape}/{SHAPES[shape]}\n")[2].partition("\n## ")[0]
        for name, field in declared.model_fields.items():
            assert f"`{name}`" in section, f"{shape}.{name}"
            assert field.description
