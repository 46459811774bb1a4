"""The lock: what it pins, how drift is named, and how runs are graded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from caiflow.engine.errors import PlanError
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.lock import LOCK, Lock, compare_locks, grade, make_lock, read_lock, refuse_drift
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.version import VERSION
from tests.support.table_runs import run_tables, write_spec


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    write_spec(tmp_path / "here")
    run_tables(tmp_path / "here" / "spec.yaml", tmp_path / "run", Store())
    return tmp_path


def now(place: Path, where: str = "here") -> Lock:
    return make_lock(Resolver(load_spec(place / where / "spec.yaml"), Store()))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_lock_pins_what_decides_the_results_and_no_path(place: Path) -> None:
    lock = read_lock(place / "run" / LOCK)
    assert lock["sources"]["red.source"]["file"] == "red.jsonl"
    assert len(lock["sources"]["red.source"]["sha256"]) == 64
    assert lock["packages"]["caiflow"] == VERSION
    assert lock["packages"]["pyarrow"]
    assert lock["hardware"]["cores"]
    assert lock["python"]
    assert set(lock["steps"]) == {"red", "clean"}
    assert lock["recipe"]["steps"]["clean"]["edges"] == {"input": "red"}
    assert str(place) not in (place / "run" / LOCK).read_text()


def test_nothing_drifts_where_nothing_changed(place: Path) -> None:
    locked = read_lock(place / "run" / LOCK)
    assert compare_locks(locked, now(place)) == []
    refuse_drift(locked, now(place), place / LOCK)
    again = make_lock(run_tables(place / "here" / "spec.yaml", place / "again", Store()))
    assert grade(locked, again) == "same artifacts"


def test_another_folder_and_speed_are_no_drift(place: Path) -> None:
    (place / "here").rename(place / "there")
    edit(place / "there" / "spec.yaml", "input: red,", "input: red, description: words, resources: {workers: 2},")
    assert compare_locks(read_lock(place / "run" / LOCK), now(place, "there")) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "drifted", "graded"),
    [
        ("spec.yaml", "max: 12", "max: 13", "recipe.steps.clean.params.drop", "another recipe"),
        ("spec.yaml", "name: short", "name: short\nseed: 4", "recipe.seed", "another recipe"),
        ("red.jsonl", "Question 3?", "Question 3!", "sources.red.source.sha256", "same recipe"),
    ],
)
def test_drift_is_named_refused_and_graded(place: Path, file: str, old: str, new: str, drifted: str, graded: str) -> None:
    locked = read_lock(place / "run" / LOCK)
    edit(place / "here" / file, old, new)
    changed = now(place)
    assert [drift.name for drift in compare_locks(locked, changed)] == [drifted]
    with pytest.raises(PlanError, match=drifted):
        refuse_drift(locked, changed, place / LOCK)
    assert grade(locked, changed) == graded


def changed_lock(lock: Lock, change: Callable[[Lock], object]) -> Lock:
    copied: Lock = json.loads(json.dumps(lock))
    change(copied)
    return copied


def with_model(lock: Lock) -> None:
    lock["models"] = {"base": {"identity": "m"}}
    lock["constitutions"] = {"mine": {"digest": "d", "principles": {"kind": "k"}}}


@pytest.mark.parametrize(
    ("change", "name", "refused", "graded"),
    [
        (lambda lock: lock["packages"].update(torch="9.9"), "packages.torch", True, "same artifacts"),
        (lambda lock: lock["packages"].pop("polars"), "packages.polars", True, "same artifacts"),
        (lambda lock: lock["hardware"].update(cores=99), "hardware.cores", False, "same artifacts"),
        (lambda lock: lock["steps"]["clean"].update(content="x"), "steps.clean.content", False, "same inputs"),
        (lambda lock: lock["models"]["base"].update(identity="x"), "models.base.identity", True, "same recipe"),
        (
            lambda lock: lock["constitutions"]["mine"]["principles"].update(kind="x"),
            "constitutions.mine.principles.kind",
            True,
            "another recipe",
        ),
    ],
)
def test_each_part_of_a_lock_counts(
    place: Path, change: Callable[[Lock], object], name: str, refused: bool, graded: str
) -> None:
    locked = changed_lock(read_lock(place / "run" / LOCK), with_model)
    other = changed_lock(locked, change)
    (drift,) = compare_locks(locked, other)
    assert (drift.name, drift.refused) == (name, refused)
    assert name in str(drift)
    assert grade(locked, other) == graded


def test_models_and_principles_are_pinned_by_content(place: Path) -> None:
    model = place / "here" / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    edit(place / "here" / "spec.yaml", "steps:", "models: {base: {source: model}}\nsteps:")
    with open(place / "here" / "spec.yaml", "a") as spec:
        spec.write("  faults: {op: critique, input: clean, model: base}\n")
    locked = now(place)
    assert locked["models"]["base"]["source"] == "model"
    edit(place / "here" / "rules.yaml", "be kind", "be very kind")
    (model / "config.json").write_text('{"hidden_size": 1}')
    names = [drift.name for drift in compare_locks(locked, now(place))]
    assert names == ["constitutions.mine.principles.kind", "models.base.identity"]


def test_results_not_made_yet_are_no_drift_but_not_the_same_either(place: Path) -> None:
    locked = read_lock(place / "run" / LOCK)
    before = changed_lock(locked, lambda lock: lock.update(steps={}))
    assert compare_locks(locked, before) == []
    assert grade(locked, before) == "same inputs"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"caiflow_lock": 2}'])
def test_what_is_no_lock_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / LOCK).write_text(text)
    with pytest.raises(PlanError, match=r"caiflow\.lock"):
        read_lock(tmp_path / LOCK)
