"""Cards, and the way to the hub and back: the real command and huggingface_hub against a hub on loopback that is strict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from caiflow.engine.lookback.cards import card
from caiflow.engine.lookback.opened import Run
from caiflow.engine.plan.lock import LOCK, make_lock, read_lock, write_lock
from caiflow.engine.store.artifacts import Store
from support.commands import command_here
from support.kills import without_token
from support.made_runs import made_run, plain_rows
from support.strict_hub import TOKEN, StrictHub, strict_hub
from support.table_runs import run_tables, write_spec


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of tables in `tables`, and one of every kind of step in `made`, with the former's spec and lock."""
    folder = tmp_path_factory.mktemp("place")
    store = Store(folder / "home")
    resolver = run_tables(write_spec(folder), folder / "tables", store)
    made_run(folder / "home", folder / "made", plain_rows(12))
    (folder / "made" / "spec.yaml").write_text((folder / "tables" / "spec.yaml").read_text())
    lock = make_lock(resolver)
    lock["models"] = {"base": {"source": "org/base", "revision": "a" * 40, "identity": "hub:org/base"}}
    lock["sources"]["red.source"] = {"hub": "org/prompts", "revision": "b" * 40}
    lock["sources"]["harmful.source"] = {"hub": "org/suite", "revision": "c" * 40}
    write_lock(folder / "made", lock)
    return folder


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIFLOW_HOME", str(place / "home"))


@pytest.fixture
def hub() -> Iterator[StrictHub]:
    with strict_hub() as state:
        yield state


def given(place: Path, hub: StrictHub, *arguments: str, token: str = TOKEN, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {
        **{name: value for name, value in without_token().items() if not name.startswith("HF_")},
        "CAIFLOW_HOME": str(place / "home"), "HF_ENDPOINT": hub.url, "HF_HOME": str(place / "hf"), "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "caiflow.engine.cli", *arguments]
    return subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, check=False, timeout=120)


def metadata(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text[4:].partition("\n---\n")[0])
    return found


def test_a_models_card_is_read_by_the_hubs_own_library(place: Path) -> None:
    from huggingface_hub import ModelCard

    text = card(Run(place / "made"), "tuned", licence="mit")
    read = ModelCard(text).data
    assert (read.license, read.library_name, read.base_model, read.datasets) == (
        "mit",
        "transformers",
        ["org/base"],
        ["org/prompts"],
    )
    (result,) = [each for each in read.eval_results if each.dataset_name == "harmful"]
    assert (result.metric_type, result.metric_value) == ("no_refusal_phrase", 0.1)
    assert (result.dataset_type, result.dataset_revision) == ("org/suite", "c" * 40), "a suite is named after its step"
    assert result.metric_args == {"low": 0.0, "high": pytest.approx(0.2), "n": 40}
    assert "10% [0, 20]" in text
    assert "90% [80, 100]" in text, "the model before it stands beside it"


def test_a_data_sets_card_is_read_by_the_hubs_own_library(place: Path) -> None:
    from huggingface_hub import DatasetCard

    text = card(Run(place / "made"), "judged")
    read = DatasetCard(text).data
    assert (read.license, read.size_categories) == (None, ["n<1K"])
    assert read.configs == [{"config_name": "default", "data_files": "*.parquet"}]
    assert "Nobody has said under which licence" in text


def test_a_card_says_the_recipe_the_principles_the_pins_and_the_notes(place: Path) -> None:
    text = card(Run(place / "made"), "judged")
    for told in ("| critiques | critique |", "org/prompts", "b" * 40, "org/base", "transformers", "the judge goes by position"):
        assert told in text
    assert "`mine`, 1 principles" in text


def test_a_card_holds_no_markup_of_strangers(place: Path, tmp_path: Path) -> None:
    run_dir = made_run(tmp_path / "home", tmp_path / "bad", plain_rows(4))
    record = json.loads((run_dir / "run.json").read_text())
    record["name"], record["notes"][0]["message"] = "a\n---\nb <script>", "x | <img src=y> [z](http://z)\n# head"
    (run_dir / "run.json").write_text(json.dumps(record))
    write_lock(run_dir, read_lock(place / "made" / LOCK))
    text = card(Run(run_dir), "judged")
    assert "<script" not in text
    assert "<img" not in text
    assert "[z](" not in text
    assert isinstance(metadata(text)["tags"], list)


def test_figures_have_no_card(place: Path) -> None:
    done = command_here(place, "push", "made", "scores", "me/x", "--dry-run")
    assert done.returncode == 1
    assert "its output is figures" in done.stderr


def test_an_export_has_cards_and_with_results_it_is_a_run_for_another_machine(place: Path, tmp_path: Path) -> None:
    assert command_here(place, "export", "tables", "plain").returncode == 0
    assert sorted(path.name for path in (place / "plain" / "steps").iterdir()) == ["clean.md", "red.md"]
    assert command_here(place, "export", "tables", "whole", "--results").returncode == 0
    (place / "whole").rename(tmp_path / "received")
    other = {"CAIFLOW_HOME": str(tmp_path / "nothing")}
    shown = command_here(tmp_path, "show", "received", "clean", "--json", "--limit", "99", **other)
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == 12
    assert command_here(tmp_path, "verify", "received", **other).returncode == 0
    assert not [path for path in (tmp_path / "received").rglob("*") if path.is_symlink()]
    assert "caiflow " in (tmp_path / "received" / "README.md").read_text()
    assert "pip install" not in (tmp_path / "received" / "README.md").read_text()


def test_rows_and_their_recipe_go_to_the_hub_and_come_back_to_the_same_digests(
    place: Path, hub: StrictHub, tmp_path: Path
) -> None:
    done = given(place, hub, "push", "tables", "clean", "me/kind-rows", "--license", "mit", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    repository = hub.repositories["datasets/me/kind-rows"]
    assert said["commit"] == repository.commits[-1]
    assert sorted(said["files"]) == sorted(repository.files)
    assert {"README.md", "recipe/spec.yaml", "recipe/caiflow.lock", "recipe/data/red.jsonl"} <= set(repository.files)
    assert ".caiflow.json" not in repository.files
    assert "part-00000.parquet" in repository.large
    back = given(place, hub, "init", "hub:datasets/me/kind-rows", str(tmp_path / "again"))
    assert back.returncode == 0, back.stderr
    assert "caiflow inspect spec.yaml" in back.stdout
    plan = json.loads(given(tmp_path / "again", hub, "plan", "spec.yaml", "--json", CAIFLOW_HOME=str(place / "home")).stdout)
    locked = read_lock(place / "tables" / LOCK)["steps"]
    assert {step["name"]: step["digest"] for step in plan["steps"]} == {name: step["digest"] for name, step in locked.items()}
    assert {step["state"] for step in plan["steps"]} == {"cached"}
    program = "import sys, datasets; print(len(datasets.load_dataset('me/kind-rows', split='train')))"
    variables = {**without_token(), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    loaded = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=120)
    assert loaded.stdout.strip() == "12", loaded.stderr


def test_a_model_goes_to_a_private_repository_and_a_second_time_only_what_changed(place: Path, hub: StrictHub) -> None:
    first = given(place, hub, "push", "made", "tuned", "me/kind-model", "--private")
    assert first.returncode == 0, first.stderr
    repository = hub.repositories["models/me/kind-model"]
    assert repository.private
    assert metadata(repository.files["README.md"].decode())["model-index"][0]["name"] == "tuned"
    second = given(place, hub, "push", "made", "tuned", "me/kind-model", "--license", "mit")
    assert second.returncode == 0, second.stderr
    assert metadata(repository.files["README.md"].decode())["license"] == "mit"
    assert len(repository.commits) == 3


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        (("push", "tables", "clean", "me/x"), "hf_wrong", "the hub refused with 401"),
        (("push", "tables", "clean", "others/x"), TOKEN, "the hub refused with 403"),
        (("push", "tables", "clean", "me/x", "--license", "mine"), TOKEN, "license must be one of"),
        (("push", "tables", "clean", "a/b/c"), TOKEN, "not the name of a repository"),
        (("init", "hub:me/none", "target"), TOKEN, "me/none: the hub says"),
        (("init", "hub:me/none@v9", "target"), TOKEN, "me/none: the hub says"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(place: Path, hub: StrictHub, arguments: Any, token: str, said: str) -> None:
    done = given(place, hub, *arguments, token=token)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert not hub.repositories.get("datasets/me/x") or hub.repositories["datasets/me/x"].files == {}
    assert not (place / "target").exists()


def test_a_hub_out_of_reach_and_offline_are_said(place: Path, hub: StrictHub) -> None:
    gone = given(place, hub, "push", "tables", "clean", "me/x", HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub is out of reach" in gone.stderr
    offline = given(place, hub, "push", "tables", "clean", "me/x", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids asking the hub; unset it" in offline.stderr


def test_a_dry_run_asks_the_hub_nothing_and_shows_the_card(place: Path, hub: StrictHub) -> None:
    done = given(place, hub, "push", "tables", "clean", "me/x", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would be pushed to me/x, a dataset repository" in done.stdout
    assert "size_categories" in done.stdout
    assert hub.requests == []


def test_a_repository_without_a_recipe_is_said(place: Path, hub: StrictHub) -> None:
    from support.strict_hub import Repository

    hub.repositories["models/me/plain"] = Repository("models", files={"README.md": b"---\n{}\n---\n", "recipe/x": b"1"})
    done = given(place, hub, "init", "hub:me/plain", "target")
    assert "it has no recipe/spec.yaml" in done.stderr
