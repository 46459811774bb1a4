"""What runs say of bad rows, the same whatever they come from, and what stops on a requirement: real runs on a real Ray."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.cli import main
from caiflow.engine.rows.folder import Rows
from caiflow.engine.store.journal import read_run
from support.commands import run_here
from support.once import made_once

pytestmark = [pytest.mark.slow]

SPEC = """
caiflow: 1
name: noted
seed: 5
constitution: harmless
models:
  base: {source: tiny, engine: transformers}
steps:
  prompts:  {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 12}
  response: {op: generate, input: prompts, model: base, sampling: {max_tokens: 3}}
  critique: {op: critique, input: response, model: base, few_shot: 1, sampling: {max_tokens: 4}}
  clean:    {op: filter, input: critique, drop: [{where: "words(response) < 99"}]}
"""


Noted = tuple[Path, Path, Path]


def found(run: dict[str, Any]) -> set[tuple[str, str]]:
    return {(note["step"], note["measure"]) for note in run["notes"]}


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Noted:
    """One run with notes: (spec, run folder, home)."""

    def make(folder: Path) -> None:
        (folder / "noted.yaml").write_text(SPEC, encoding="utf-8")
        run_here(ray_address, folder / "noted.yaml", folder / "run", folder / "home")

    base = made_once(tmp_path_factory, "noted", make)
    return base / "noted.yaml", base / "run", base / "home"


def test_bad_rows_are_in_run_json_with_figure_and_rows(noted: Noted) -> None:
    run = read_run(noted[1])
    assert {("response", "truncated"), ("critique", "truncated"), ("clean", "dropped_where"), ("clean", "no_rows")} <= found(
        run
    )
    note = next(note for note in run["notes"] if note["step"] == "response")
    uids = [row["uid"] for row in Rows(noted[1] / "steps" / "response").pylist()]
    assert note["value"] > note["threshold"] == 0.2
    assert len(note["uids"]) == 3
    assert set(note["uids"]) <= set(uids)
    left_out = next(note for note in run["notes"] if note["measure"] == "dropped_where")
    assert left_out["uids"] == uids[:3]


def test_they_are_said_while_it_runs_at_its_end_and_afterwards(noted: Noted, capsys: pytest.CaptureFixture[str]) -> None:
    note = next(note for note in read_run(noted[1])["notes"] if note["step"] == "response")
    console = (noted[1] / "console.txt").read_text(encoding="utf-8")
    assert console.count(note["message"]) == 2  # as the step is done, and at the end
    assert "▲ response" in console
    assert "✓ prompts" in console
    main(["show", str(noted[1])])
    main(["show", str(noted[1]), "response", "--limit", "1"])
    assert " ".join(capsys.readouterr().out.split()).count(note["message"]) == 2


@pytest.mark.soak
def test_a_cached_run_and_one_from_the_ledger_have_the_same_notes(noted: Noted, ray_address: str) -> None:
    spec, out, home = noted
    again = run_here(ray_address, spec, out.parent / "again", home)
    assert {step["status"] for step in again["steps"].values()} == {"cached"}
    bare = out.parent / "bare"
    shutil.copytree(home / "ledger", bare / "ledger")
    replayed = run_here(ray_address, spec, out.parent / "replayed", bare)
    assert replayed["steps"]["critique"]["cached"] == 12
    first = read_run(out)["notes"]
    for other in (again, replayed):
        assert sorted(other["notes"], key=str) == sorted(first, key=str)


@pytest.mark.soak
def test_a_requirement_stops_the_run_before_the_next_step_and_keeps_all(noted: Noted, ray_address: str) -> None:
    spec, out, _ = noted
    home = out.parent / "strict"
    require = 'steps.response.require={rows: ">= 5", truncated: "< 50%"}'
    run = run_here(ray_address, spec, out.parent / "stopped", home, "--set", require, code=1)
    response = run["steps"]["response"]
    assert response["status"] == "failed"
    assert "required < 0.5" in response["error"]
    assert "caiflow show" in response["error"]
    assert run["steps"]["critique"]["status"] == "skipped"
    assert Rows(out.parent / "stopped" / "steps" / "response").num_rows == 12
    assert not any("critique" in path.name for path in (home / "ledger").iterdir())


@pytest.mark.soak
def test_a_requirement_that_fails_does_so_again_and_one_that_holds_changes_nothing(noted: Noted, ray_address: str) -> None:
    spec, out, home = noted
    require = 'steps.response.require={rows: ">= 5", truncated: "< 50%"}'
    still = run_here(ray_address, spec, out.parent / "still", home, "--set", require, code=1)
    assert still["steps"]["response"]["cached"] == 12
    loose = run_here(ray_address, spec, out.parent / "loose", home, "--set", 'steps.response.require={rows: ">= 5"}')
    assert loose["steps"]["response"]["status"] == "cached"
    assert loose["status"] == "done"
    assert found(loose) == found(read_run(out))
    same = [Rows(folder / "steps" / "critique").pylist() for folder in (out.parent / "loose", out)]
    assert same[0] == same[1]


def test_plan_lists_requirements_and_validate_refuses_unknown_ones(noted: Noted, capsys: pytest.CaptureFixture[str]) -> None:
    spec = noted[0]
    assert main(["plan", str(spec), "--set", 'steps.response.require={truncated: "< 50%"}']) == 0
    assert "response must have truncated < 50% before" in " ".join(capsys.readouterr().out.split())
    assert main(["validate", str(spec), "--set", 'steps.response.require={truncatd: "< 50%"}']) == 2
    assert "did you mean `truncated`" in capsys.readouterr().out
    assert main(["validate", str(spec), "--set", 'steps.response.require={truncated: "few"}']) == 2
