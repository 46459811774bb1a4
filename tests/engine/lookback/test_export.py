"""A run as a folder for somebody else."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from caiflow.engine.errors import CaiflowError, SpecError
from caiflow.engine.lookback.export import export
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.lock import LOCK, grade, make_lock, read_lock
from caiflow.engine.plan.relocate import portable, relocated
from caiflow.engine.spec.load import load_spec
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.store.artifacts import Store
from tests.support.table_runs import run_tables, write_spec


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    run_tables(write_spec(tmp_path / "here"), tmp_path / "run", Store())
    return tmp_path


def test_an_export_runs_elsewhere_to_the_same_artifacts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export(place / "run", place / "sent", Store(), allowed=Permissions(paths=(place,)))
    assert made.files == ("README.md", LOCK, "data/red.jsonl", "data/rules.yaml", "spec.yaml")
    assert made.drift == made.left_out == ()
    assert str(place) not in "".join(path.read_text() for path in place.joinpath("sent").rglob("*") if path.is_file())
    (place / "sent").rename(place / "received")
    shutil.rmtree(place / "here")
    monkeypatch.setenv("CAIFLOW_HOME", str(place / "other-home"))
    again = run_tables(place / "received" / "spec.yaml", place / "run-there", Store())
    assert grade(read_lock(place / "received" / LOCK), make_lock(again)) == "same artifacts"


NAMES = ["d[1].jsonl", "a*b.jsonl", "what?.jsonl", "{x}.jsonl", "a b.jsonl", "~x.jsonl", "ä[!a].jsonl", "[].jsonl"]


def rows_of(word: str, number: int) -> str:
    return "".join(json.dumps({"prompt": f"{word} {n}?", "response": "So."}) + "\n" for n in range(number))


@pytest.fixture
def patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files whose names read like patterns, others that those would fit, and a folder of shards."""
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    (here / "shards").mkdir(parents=True)
    for name in (*NAMES, "d1.jsonl", "aXb.jsonl", "whats.jsonl"):
        (here / name).write_text(rows_of(name, 2))
    for number in range(3):
        (here / "shards" / f"part{number}.jsonl").write_text(rows_of(f"part {number}", number + 1))
    (here / "shards" / "other.jsonl").write_text(rows_of("other", 9))
    sources = {
        f"s{number}": name for number, name in enumerate([*NAMES, "d1.jsonl", "shards/part*.jsonl", "./shards/[op]*.jsonl"])
    }
    steps = {name: {"op": "load", "source": source} for name, source in sources.items()}
    (here / "spec.yaml").write_text(yaml.safe_dump({"caiflow": 1, "name": "named", "steps": steps}))
    return tmp_path


def contents(resolver: Resolver) -> dict[str, str]:
    return {name: artifact.content for name, artifact in resolver.artifacts.items()}


def test_files_named_like_patterns_and_patterns_run_elsewhere_to_the_same_artifacts(
    patterns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_tables(patterns / "here" / "spec.yaml", patterns / "run", Store())
    assert {name: artifact.rows_out for name, artifact in made.artifacts.items()} == {
        **{f"s{number}": 2 for number in range(len(NAMES) + 1)}, f"s{len(NAMES) + 1}": 6, f"s{len(NAMES) + 2}": 15,
    }  # fmt: skip
    again = run_tables(patterns / "run" / "spec.yaml", patterns / "again", Store(patterns / "fresh"), allowed=[patterns])
    assert contents(again) == contents(made), "the spec that a run leaves behind means the same"
    sent = export(patterns / "run", patterns / "sent", Store(), allowed=Permissions(paths=(patterns,)))
    assert sent.drift == sent.left_out == sent.unasked == ()
    assert str(patterns) not in (patterns / "sent" / "spec.yaml").read_text()
    (patterns / "sent").rename(patterns / "received")
    shutil.rmtree(patterns / "here")
    monkeypatch.setenv("CAIFLOW_HOME", str(patterns / "other-home"))
    there = run_tables(patterns / "received" / "spec.yaml", patterns / "run-there", Store())
    assert contents(there) == contents(made)
    assert grade(read_lock(patterns / "received" / LOCK), make_lock(there)) == "same artifacts"


def test_a_pattern_whose_files_are_too_large_stays_where_it_is(patterns: Path) -> None:
    run_tables(patterns / "here" / "spec.yaml", patterns / "run", Store())
    sent = export(patterns / "run", patterns / "sent", Store(), limit_bytes=300, allowed=Permissions(paths=(patterns,)))
    assert sent.left_out == (patterns / "here" / "shards" / "[op]*.jsonl",)
    steps = yaml.safe_load((patterns / "sent" / "spec.yaml").read_text())["steps"]
    assert steps["s10"]["source"] == str(patterns / "here" / "shards" / "[op]*.jsonl")
    assert steps["s9"]["source"] == "patterns/shards/part*.jsonl"
    assert steps["s0"]["source"] == "data/d[1].jsonl"


def test_a_pattern_written_in_another_folder_is_taken_from_there(patterns: Path) -> None:
    (patterns / "spec.yaml").write_text("caiflow: 1\nextends: here/spec.yaml\n")
    spec = load_spec(patterns / "spec.yaml")
    assert spec.raw["steps"]["s9"]["source"] == "here/shards/part*.jsonl"
    assert spec.raw["steps"]["s0"]["source"] == "here/d[1].jsonl"


def test_what_changed_since_the_run_is_said(place: Path) -> None:
    with open(place / "here" / "red.jsonl", "a") as file:
        file.write('{"prompt": "new", "response": "new"}\n')
    assert [
        drift.name for drift in export(place / "run", place / "sent", Store(), allowed=Permissions(paths=(place,))).drift
    ] == ["sources.red.source.sha256"]


def test_large_files_stay_where_they_are_and_the_reader_is_told(place: Path) -> None:
    made = export(place / "run", place / "sent", Store(), limit_bytes=200, allowed=Permissions(paths=(place,)))
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
    export(place / "pair-run", place / "sent", Store(), allowed=Permissions(paths=(place,)))
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
        export(place / "run", place / "sent", Store(), allowed=Permissions(paths=(place,)))
    (place / "run" / LOCK).unlink()
    with pytest.raises(CaiflowError, match="no readable lock"):
        export(place / "run", place / "sent", Store(), allowed=Permissions(paths=(place,)))
