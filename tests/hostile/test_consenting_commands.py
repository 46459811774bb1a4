"""Every command that reads a spec takes the same word for keys, hosts and paths, and asks no server without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import caiflow
from support.bad_server import BadServer, bad_server
from support.commands import command_here

SPEC = """
caiflow: 1
name: theirs
models: {{judge: {{source: "{address}", api_key_env: JUDGE_KEY}}}}
steps:
  rows:   {{op: load, source: rows.jsonl}}
  answer: {{op: generate, input: rows, model: judge}}
"""
COMMANDS = [["plan", "spec.yaml"], ["why", "spec.yaml", "answer"]]


@pytest.fixture
def server() -> Iterator[BadServer]:
    with bad_server() as state:
        yield state


@pytest.fixture
def host(server: BadServer) -> str:
    """A server in no public network that is reached from here: this machine, by an address that isn't the loopback's."""
    return server.url.removesuffix("/v1").removeprefix("http://").replace("127.0.0.1", "0.0.0.0")


@pytest.fixture
def place(tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("JUDGE_KEY", "secret")
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Why?"}) + "\n")
    (tmp_path / "spec.yaml").write_text(SPEC.format(address=f"http://{host}/v1"))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_is_asked_which_model_it_has_only_after_its_users_word(
    place: Path, host: str, server: BadServer, command: list[str]
) -> None:
    for flags in ([], ["--allow-host", host], ["--allow-env", f"OTHER_KEY={host}"]):
        assert command_here(place, *command, *flags).returncode == 0
        assert server.listings == 0, flags
    assert command_here(place, *command, "--allow-env", f"JUDGE_KEY={host}").returncode == 0
    assert server.listings == 1


def test_python_plans_with_the_same_word(place: Path, host: str, server: BadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    caiflow.plan("spec.yaml", allow_hosts=[host])
    assert server.listings == 0
    caiflow.plan("spec.yaml", allow_env={"JUDGE_KEY": host})
    assert server.listings == 1


def test_inspect_asks_for_no_word_that_it_was_given(place: Path, host: str) -> None:
    flag = f"--allow-env JUDGE_KEY={host}"
    assert f"NEEDS YOUR WORD: {flag}" in command_here(place, "inspect", "spec.yaml").stdout
    assert "nothing of this needs your word" in command_here(place, "inspect", "spec.yaml", *flag.split()).stdout


@pytest.mark.parametrize("command", ["run", "plan", "try", "why", "inspect", "validate", "export"])
def test_every_command_takes_the_three_options(place: Path, command: str) -> None:
    said = command_here(place, command, "--help").stdout
    assert all(option in said for option in ("--allow-path DIR", "--allow-env VARIABLE=HOST", "--allow-host HOST")), said
