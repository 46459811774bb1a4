"""Bounds on a run's figures: what holds, what crosses, what is missing, and where a file of bounds is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caiflow.engine.errors import SpecError
from caiflow.engine.identity import digest
from caiflow.engine.lookback.gates import Gate, gates
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.store.artifacts import Store
from support.commands import command_here
from support.made_runs import made_run, plain_rows

HARMFUL = "models.tuned.harmful.no_refusal_phrase"  # 0.1 [0, 0.2] of 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    made_run(folder / "home", folder / "run", plain_rows(12))
    return folder


def held(place: Path, text: str) -> list[Gate]:
    (place / "gates.yaml").write_text(f"caiflow_gates: 1\n{text}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAIFLOW_HOME", str(place / "home"))
        return gates(place / "gates.yaml", place / "run")


@pytest.mark.parametrize(
    ("step", "figure", "bound", "verdict"),
    [
        ("scores", HARMFUL, "<= 0.2", "holds"),
        ("scores", HARMFUL, "< 0.2", "crosses"),
        ("scores", HARMFUL, "<= 15%", "crosses"),
        ("scores", HARMFUL, ">= 0.05", "crosses"),
        ("scores", HARMFUL, ">= 0.3", "fails"),
        ("scores", "models.tuned.helpful.no_refusal_phrase", ">= 85%", "holds"),
        ("judged", "order_flips", "<= 0.5", "holds"),
        ("judged", "order_flips", "< 0.5", "fails"),
        ("tuned", "train_loss", "< 1", "holds"),
        ("clean", "rows_out", ">= 9", "holds"),
        ("clean", "dropped", "<= 2", "fails"),
    ],
)
def test_a_figure_holds_where_its_whole_interval_does(place: Path, step: str, figure: str, bound: str, verdict: str) -> None:
    (gate,) = held(place, f'steps: {{{step}: {{{figure}: "{bound}"}}}}\n')
    assert (gate.step, gate.figure, gate.verdict) == (step, figure, verdict)
    if step == "scores" and "harmful" in figure:
        assert (gate.value, gate.low, gate.high, gate.n) == (0.1, 0.0, pytest.approx(0.2), 40)


def test_what_a_cached_step_left_out_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    run_dir, store = made_run(tmp_path / "home", tmp_path / "run", plain_rows(12)), Store(tmp_path / "home")
    staged = store.stage(digest("again"))
    with RowsWriter(staged) as out:
        out.write_rows(plain_rows(9))
    artifact = store.seal(digest("again"), staged, {"kind": "rows", "rows_out": 9, "counts": {"dropped": 3}})
    (run_dir / "steps" / "clean").unlink()
    (run_dir / "steps" / "clean").symlink_to(artifact.path)
    run = json.loads((run_dir / "run.json").read_text())
    del run["steps"]["clean"]["dropped"]
    run["steps"]["clean"] |= {"status": "cached", "digest": artifact.digest}
    (run_dir / "run.json").write_text(json.dumps(run))
    (tmp_path / "gates.yaml").write_text('caiflow_gates: 1\nsteps: {clean: {dropped: "<= 2"}}\n')
    (gate,) = gates(tmp_path / "gates.yaml", run_dir)
    assert (gate.verdict, gate.value) == ("fails", 3)


@pytest.mark.parametrize(
    ("figure", "bound", "verdict"),
    [
        ("models.m.s.c", "<= 10%", "missing"),  # no answer to count
        ("agreement.people.kappa", ">= 0.6", "crosses"),  # 0.7, by an interval from 0.4
        ("agreement.people.kappa", ">= 0.4", "holds"),
        ("agreement.few.kappa", ">= 0.4", "missing"),
        ("judge.value", "<= 1", "holds"),  # no interval: a number of that name
    ],
)
def test_a_figure_without_a_value_is_missing_and_kappa_has_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: str, bound: str, verdict: str
) -> None:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    run_dir, store = made_run(tmp_path / "home", tmp_path / "run", plain_rows(12)), Store(tmp_path / "home")
    staged = store.stage(digest("other figures"))
    kappa = {"value": 0.7, "n": 20, "low": 0.4, "high": 0.9}
    found = {
        "models": {"m": {"s": {"c": {"rate": None, "n": 0, "low": 0.0, "high": 1.0}}}},
        "agreement": {"people": {"kappa": kappa}, "few": {"kappa": {"value": None, "n": 1, "low": None, "high": None}}},
        "judge": {"value": 1.0},
    }
    (staged / "metrics.json").write_text(json.dumps(found))
    artifact = store.seal(digest("other figures"), staged, {"kind": "metrics"})
    (run_dir / "steps" / "scores").unlink()
    (run_dir / "steps" / "scores").symlink_to(artifact.path)
    (tmp_path / "gates.yaml").write_text(f'caiflow_gates: 1\nsteps: {{scores: {{{figure}: "{bound}"}}}}\n')
    assert [gate.verdict for gate in gates(tmp_path / "gates.yaml", run_dir)] == [verdict]


@pytest.mark.parametrize(("most", "verdict"), [(0, "fails"), (1, "holds")])
def test_notes_count_where_that_is_asked(place: Path, most: int, verdict: str) -> None:
    assert [gate.verdict for gate in held(place, f"notes: {most}\n")] == [verdict]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("steps: {score: {x: '< 1'}}\n", 2, "no step `score`; did you mean `scores`?"),
        ("steps:\n  judged:\n    order_flip: '< 1'\n", 4, "`judged` has no figure `order_flip`; did you mean `order_flips`?"),
        ("steps: {judged: {order_flips: 'below 1'}}\n", 2, "a bound is a sign and a number, got 'below 1'"),
        ("steps: {judged: {order_flips: 0.4}}\n", 2, "a bound is a sign and a number, got '0.4'"),
        ("step: {}\n", 2, "unknown key `step`; did you mean `steps`?"),
        ("notes: none\n", 2, "`notes` is the most notes"),
    ],
)
def test_a_wrong_file_is_refused_at_its_place(place: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        held(place, text)
    (problem,) = refused.value.problems
    assert problem.line == line
    assert said in str(problem)


@pytest.mark.parametrize("text", ["", "[]", "caiflow: 1\n", "caiflow_gates: 2\n", "- 1\n", "steps: {}\n"])
def test_another_file_is_no_file_of_gates(place: Path, text: str) -> None:
    (place / "other.yaml").write_text(text)
    with pytest.raises(SpecError, match="no file of gates"):
        gates(place / "other.yaml", place / "run")


def test_the_command_fails_a_build_and_leaves_evidence(place: Path) -> None:
    (place / "gates.yaml").write_text(f'caiflow_gates: 1\nsteps: {{scores: {{{HARMFUL}: "<= 15%"}}}}\n')
    home = {"CAIFLOW_HOME": str(place / "home")}
    done = command_here(place, "gate", "run", "gates.yaml", **home)
    assert done.returncode == 1
    assert f"✗ scores {HARMFUL}: 0.1 [0, 0.2], n 40, its interval crosses the bound; wanted <= 0.15" in done.stdout
    assert "▲ judged: judgements that flip with the order of the answers: 50%" in done.stdout, "notes are told, bound or not"
    kept = json.loads((place / "run" / "gate.json").read_text())
    printed = json.loads(command_here(place, "gate", "run", "gates.yaml", "--json", **home).stdout)
    assert {**kept, "at": 0} == {**printed, "at": 0}
    assert kept["passed"] is False
    assert [note["measure"] for note in kept["notes"]] == ["order_flips"]
    assert kept["held"][0]["digest"] == json.loads((place / "run" / "run.json").read_text())["steps"]["scores"]["digest"]
    (place / "gates.yaml").write_text(f'caiflow_gates: 1\nsteps: {{scores: {{{HARMFUL}: "<= 20%"}}}}\n')
    assert command_here(place, "gate", "run", "gates.yaml", "--out", "here.json", **home).returncode == 0
    assert json.loads((place / "here.json").read_text())["passed"] is True


def test_a_run_that_is_not_done_passes_no_gate(place: Path) -> None:
    other = place / "failed"
    made_run(place / "home2", other, plain_rows(12))
    run = json.loads((other / "run.json").read_text())
    run["status"], run["steps"]["scores"]["status"] = "failed", "failed"
    (other / "run.json").write_text(json.dumps(run))
    (place / "gates.yaml").write_text(f'caiflow_gates: 1\nsteps: {{scores: {{{HARMFUL}: "<= 1"}}}}\n')
    done = command_here(place, "gate", "failed", "gates.yaml", CAIFLOW_HOME=str(place / "home2"))
    assert done.returncode == 1
    assert "no value" in done.stdout
    assert "the run is failed, not done" in done.stdout
