"""caiflow from Python: runs, plans, opened runs, the command line's errors, and the notebook that is shipped."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import caiflow
from caiflow.engine.lookback.opened import Step

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


def spec(**steps: Any) -> dict[str, Any]:
    rows = [{"prompt": "How do I bake bread?", "response": "Mix flour and water."}, {"prompt": "Who are you?", "response": ""}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = {"op": "load", "source": Path("rows.jsonl")}
    keep = {"op": "filter", "input": "rows", "drop": [{"length": {"column": "response", "min": 1}}]}
    return {"caiflow": 1, "name": "small", "steps": {"rows": load, "kept": keep, **steps}}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_dict_is_planned_run_and_opened_again(place: Path) -> None:
    """One run for all that a finished one gives: its state, its rows as the libraries hold them, and what it didn't make."""
    assert [step["state"] for step in caiflow.plan(spec())["steps"]] == ["run", "run"]
    run = caiflow.run(spec(), progress=False)
    assert (run.status, list(run), run["kept"].op) == ("done", ["rows", "kept"], "filter")
    assert run.path.is_relative_to(place / "runs" / "small")
    assert [step["state"] for step in caiflow.plan(spec())["steps"]] == ["cached", "cached"]
    again = caiflow.open_run("last")
    assert again.path == run.path
    assert again["kept"].metrics == run["kept"].metrics
    rows_come_as_what_the_libraries_hold(run["kept"])
    with pytest.raises(caiflow.CaiflowError, match="filter makes rows, not figures"):
        _ = run["kept"].figures
    with pytest.raises(KeyError, match="no step 'kpet'"):
        _ = run["kpet"]
    with pytest.raises(caiflow.CaiflowError, match="no such run"):
        caiflow.open_run("nothing")


def rows_come_as_what_the_libraries_hold(step: Step) -> None:
    table = step.table
    assert (len(table), step.kind) == (1, "rows")
    assert [row["response"] for row in table] == ["Mix flour and water."]
    assert table.head() == list(table) == table.to_polars().to_dicts() == table.dataset().to_list()
    assert table.to_arrow().column_names == list(table.columns) == list(table.lazy().collect_schema())
    assert table.to_pandas()["response"].tolist() == ["Mix flour and water."]
    assert [row["reason"] for row in step.dropped] == ["length"]


def test_values_are_set_by_their_paths_whatever_their_type() -> None:
    assert caiflow.validate(spec(), set={"steps.kept.description": "1e3", "seed": 5, "steps.kept.drop": ["duplicates"]}) == []
    (problem,) = caiflow.validate(spec(), set={"steps.kept.description": 1e3})
    assert problem.path == "steps.kept.description"
    with pytest.raises(caiflow.SpecError, match="unknown step"):
        caiflow.plan(spec(), set={"steps.kpet.drop": []})


def test_what_is_wrong_comes_with_its_place() -> None:
    wrong = spec(more={"op": "filtre", "input": "kept"})
    with pytest.raises(caiflow.SpecError) as caught:
        caiflow.run(wrong)
    (problem,) = caught.value.problems
    assert (problem.path, problem.hint) == ("steps.more.op", "did you mean `filter`?")
    assert problem.line > 1
    assert caiflow.validate(wrong) == [problem]
    Path("wrong.yaml").write_text("caiflow: 1\nsteps:\n  rows: {op: laod, source: rows.jsonl}\n")
    (problem,) = caiflow.validate("wrong.yaml")
    assert (problem.file, problem.line, problem.col) == ("wrong.yaml", 3, 14)
    (problem,) = caiflow.validate("quickstrat")
    assert "quickstart" in problem.hint


@pytest.mark.soak
def test_a_step_that_fails_is_raised_with_the_runs_folder() -> None:
    failing = spec(none={"op": "mix", "inputs": {"kept": {"rows": 5}}, "make": "prompts"})
    with pytest.raises(caiflow.StepError, match=r"none: (.|\n)*kept in .*runs/small/"):
        caiflow.run(failing, progress=False)
    assert caiflow.open_run("last").status == "failed"


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.skipif(not find_spec("nbclient"), reason="nbclient isn't installed")
def test_the_notebook_runs_from_its_first_cell_to_its_last(place: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute(
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    )
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = " ".join(str(output.get("data", {}).get("text/plain", output.get("text", ""))) for output in outputs)
    assert "<run notebook: done, 6 steps" in texts
    assert "did you mean `filter`?" in texts
    assert "'no_refusal_phrase'" in texts
    assert not [output for output in outputs if output.output_type == "error"]
