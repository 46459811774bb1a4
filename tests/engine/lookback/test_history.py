"""Finding runs and reading what they left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from caiflow.engine.errors import CaiflowError, StoreError
from caiflow.engine.lookback.history import evaluations, find_run, list_runs, model_card, output_kind, step_dir
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.journal import Journal


def make_run(store: Store, folder: Path, name: str, status: str = "done") -> Path:
    """Write a run with a done and a failed step and record it in the store."""
    steps = [{"name": "red", "op": "load"}, {"name": "scores", "op": "evaluate"}, {"name": "broken", "op": "sft"}]
    with Journal(folder) as journal:
        journal.emit("run_started", name=name, steps=steps)
        (folder / "steps" / "red").mkdir(parents=True)
        (folder / "steps" / "red" / "part-00000.parquet").touch()
        (folder / "steps" / "scores").mkdir()
        (folder / "steps" / "scores" / "metrics.json").write_text('{"models": {}}')
        journal.emit("step_done", step="red", status="done")
        journal.emit("step_done", step="scores", status="cached")
        journal.emit("step_done", step="broken", status="failed", error="no memory")
        journal.emit("run_done", status=status)
    store.record_run(name, folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "home")
    make_run(store, tmp_path / "runs" / "cai" / "first", "cai")
    make_run(store, tmp_path / "runs" / "cai" / "second", "cai", "failed")
    make_run(store, tmp_path / "runs" / "other" / "third", "other")
    return store


@pytest.mark.parametrize(
    ("word", "folder"), [("last", "third"), ("cai", "second"), ("first", "first"), ("cai/first", "first"), ("other", "third")]
)
def test_a_word_means_a_run(store: Store, word: str, folder: str) -> None:
    assert find_run(word, store).name == folder


def test_a_run_below_the_current_folder_goes_before_a_later_one_elsewhere(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "runs" / "cai")
    assert find_run("last", store).name == "second"
    monkeypatch.chdir(tmp_path / "runs" / "other")
    assert find_run("last", store).name == "third"
    assert find_run("cai", store).name == "second"


def test_a_folder_means_the_run_in_it(store: Store, tmp_path: Path) -> None:
    assert find_run(str(tmp_path / "runs/cai/first"), store) == tmp_path / "runs/cai/first"


def test_an_unknown_run_suggests_the_nearest(store: Store) -> None:
    with pytest.raises(CaiflowError, match="did you mean `second`"):
        find_run("secnd", store)
    with pytest.raises(CaiflowError, match="no runs"):
        find_run("x", Store(store.home / "empty"))


def test_runs_are_listed_with_their_steps(store: Store) -> None:
    lines = list_runs(store)
    assert [(line.name, line.path.name, line.status) for line in lines] == [
        ("cai", "first", "done"),
        ("cai", "second", "failed"),
        ("other", "third", "done"),
    ]
    assert lines[0].steps == {"done": 1, "cached": 1, "failed": 1}


@pytest.mark.parametrize("left", ["", "{", "null", "[]", '{"status": "done"}', '{"status": "done", "steps": []}', "\ufeff\0"])
def test_a_run_whose_record_is_damaged_is_left_out_and_told_of_where_it_is_meant(
    store: Store, tmp_path: Path, left: str
) -> None:
    folder = tmp_path / "runs/cai/first"
    (folder / "run.json").write_text(left)
    assert len(list_runs(store)) == 2
    assert find_run("last", store) != folder
    with pytest.raises(StoreError, match=r"run\.json: no record of a run, or a damaged one; run the spec again"):
        step_dir(find_run(str(folder), store), "red")


def test_step_outputs_are_found_and_told_apart(store: Store) -> None:
    run_dir = find_run("last", store)
    assert output_kind(step_dir(run_dir, "red")) == "rows"
    assert output_kind(step_dir(run_dir, "scores")) == "metrics"
    assert [step for step, _ in evaluations(run_dir)] == ["scores"]


def test_a_step_without_output_says_why(store: Store) -> None:
    run_dir = find_run("last", store)
    with pytest.raises(CaiflowError, match=r"broken: no output, the step is failed \(no memory\)"):
        step_dir(run_dir, "broken")
    with pytest.raises(CaiflowError, match="did you mean `scores`"):
        step_dir(run_dir, "score")


def test_a_model_card_tells_size_and_loss(tmp_path: Path) -> None:
    store = Store(tmp_path)
    staged = store.stage("ab" * 32)
    (staged / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "dtype": "float32"}))
    (staged / "model.safetensors").write_bytes(os.urandom(1000))
    (staged / "_history.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    artifact = store.seal("ab" * 32, staged, {"kind": "model", "metrics": {"train_loss": 1.5}})
    card = model_card(artifact.path)
    assert (card["architecture"], card["dtype"], card["size_bytes"]) == ("LlamaForCausalLM", "float32", 1000)
    assert card["metrics"] == {"train_loss": 1.5}
    assert [point["loss"] for point in card["history"]] == [2.0, 1.0]
