"""A run as a folder for somebody else."""

import shutil
from pathlib import Path

import pytest
import yaml

from caiflow.engine.errors import CaiflowError, SpecError
from caiflow.engine.lookback.export import export
from caiflow.engine.plan.lock import LOCK, grade, make_lock, read_lock
from caiflow.engine.plan.relocate import portable, relocated
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from tests.support.table_runs import run_tables, write_spec


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    run_tables(write_spec(tmp_path / "here"), tmp_path / "run", Store())
    return tmp_path


def test_an_export_runs_elsewhere_to_the_same_artifacts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export(place / "run", place / "sent", Store(), allowed=[place])
    assert made.files == ("README.md", LOCK, "data/red.jsonl", "data/rules.yaml", "spec.yaml")
    assert made.drift == made.left_out == ()
    assert str(place) not in "".join(path.read_text() for path in place.joinpath("sent").rglob("*") if path.is_file())
    (place / "sent").rename(place / "received")
    shutil.rmtree(place / "here")
    monkeypatch.setenv("CAIFLOW_HOME", str(place / "other-home"))
    again = run_tables(place / "received" / "spec.yaml", place / "run-there", Store())
    assert grade(read_lock(place / "received" / LOCK), make_lock(again)) == "same artifacts"


def test_what_changed_since_the_run_is_said(place: Path) -> None:
    with open(place / "here" / "red.jsonl", "a") as file:
        file.write('{"prompt": "new", "response": "new"}\n')
    assert [drift.name for drift in export(place / "run", place / "sent", Store(), allowed=[place]).drift] == [
        "sources.red.source.sha256"
    ]


def test_large_files_stay_where_they_are_and_the_reader_is_told(place: Path) -> None:
    made = export(place / "run", place / "sent", Store(), limit_bytes=200, allowed=[place])
    assert [path.name for path in made.left_out] == ["red.jsonl"]
    assert "red.jsonl" in (place / "sent" / "README.md").read_text()
    assert yaml.safe_load((place / "sent" / "spec.yaml").read_text())["steps"]["red"]["source"] == str(
        place / "here" / "red.jsonl"
    )


def test_files_of_one_name_stay_apart_and_keep_their_names(place: Path) -> None:
    for folder in ("a", "b"):
        (place / folder).mkdir()
        (place / folder / "same.jsonl").write_text(f'{{"prompt": "{folder}?", "response": "{folder}"}}\n')
    (place / "pair.yaml").write_text(
        "caiflow: 1\nsteps:\n  a: {op: load, source: a/same.jsonl}\n  b: {op: load, source: b/same.jsonl}\n"
        "  c: {op: load, source: a/same.jsonl, limit: 1}\n"
    )
    run_tables(place / "pair.yaml", place / "pair-run", Store())
    export(place / "pair-run", place / "sent", Store(), allowed=[place])
    steps = yaml.safe_load((place / "sent" / "spec.yaml").read_text())["steps"]
    assert [steps[name]["source"] for name in "abc"] == ["data/same.jsonl", "data/2/same.jsonl", "data/same.jsonl"]
    assert "a?" in (place / "sent" / "data" / "same.jsonl").read_text()


def test_folders_and_every_kind_of_constitution_move(place: Path) -> None:
    (place / "here" / "model").mkdir()
    (place / "here" / "model" / "config.json").write_text("{}")
    (place / "here" / "t.jinja").write_text("{{ messages }}")
    text = (place / "here" / "spec.yaml").read_text()
    text = text.replace("rules.yaml", "[rules.yaml, {id: own, rule: be brief}]")
    text = text.replace("steps:", "models: {base: {source: model, chat_template: t.jinja}}\nsteps:")
    (place / "here" / "spec.yaml").write_text(text)
    spec = load_spec(place / "here" / "spec.yaml")
    moved = relocated(spec, lambda path: f"moved/{path.name}")
    assert moved["models"]["base"] == {"source": "moved/model", "chat_template": "moved/t.jinja"}
    assert moved["constitution"] == ["moved/rules.yaml", {"id": "own", "rule": "be brief"}]
    assert moved["steps"]["red"]["source"] == "moved/red.jsonl"
    assert spec.raw["steps"]["red"]["source"] == "red.jsonl"


def test_a_portable_spec_loads_from_any_folder_to_the_same_steps(place: Path) -> None:
    spec = load_spec(place / "here" / "spec.yaml")
    (place / "elsewhere.yaml").write_text(portable(spec))
    loaded = load_spec(place / "elsewhere.yaml", allowed=[place])
    assert list(loaded.steps) == list(spec.steps)
    assert loaded.constitution == str(place / "here" / "rules.yaml")


def test_files_that_nobody_asked_to_hand_on_stay_where_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"red\.jsonl is outside this spec's folder; say --allow-path .*here"):
        export(place / "run", place / "sent", Store())
    (place / "config" / "caiflow").mkdir(parents=True)
    (place / "config" / "caiflow" / "allow.yaml").write_text(f"paths: [{place}]")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    made = export(place / "run", place / "kept", Store())
    assert {path.name for path in made.unasked} == {"red.jsonl", "rules.yaml"}
    assert made.files == ("README.md", LOCK, "spec.yaml")
    assert str(place / "here" / "red.jsonl") in (place / "kept" / "README.md").read_text()


def test_what_lies_in_the_working_folder_comes_along_unasked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert "data/red.jsonl" in export(place / "run", place / "sent", Store()).files


def test_what_cannot_be_exported_is_said(place: Path) -> None:
    with pytest.raises(CaiflowError, match="not empty"):
        export(place / "run", place / "here", Store())
    (place / "here" / "red.jsonl").unlink()
    with pytest.raises(SpecError, match=r"red\.jsonl"):
        export(place / "run", place / "sent", Store(), allowed=[place])
    (place / "run" / LOCK).unlink()
    with pytest.raises(CaiflowError, match="no readable lock"):
        export(place / "run", place / "sent", Store(), allowed=[place])
