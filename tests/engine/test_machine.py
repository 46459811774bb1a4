"""A user without a home folder is told what to set, and needs nothing else."""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.cli import COMMANDS, main
from caiflow.engine.machine import home

SPEC = """\
caiflow: 1
models: {base: {source: tiny}}
steps:
  rows: {op: load, source: rows.jsonl}
  answers: {op: generate, input: rows, model: base}
"""


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a folder with a spec, for a user without HOME who isn't in the machine's list of users."""

    def nobody(_uid: int) -> Any:
        raise KeyError("such a user can't be made without the rights to change this process's own")

    for name in ("HOME", "CAIFLOW_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


KEEPING: Mapping[str, list[str]] = {
    "plan": ["spec.yaml"], "run": ["spec.yaml"], "why": ["spec.yaml", "rows"], "runs": [], "gc": [], "doctor": [],
    "show": ["last"], "report": ["last"], "diff": ["last", "last"], "verify": ["last"], "export": ["last", "out"],
    "replay": ["last"], "ctl": ["last"],
    "serve": ["last", "rows"], "inspect": ["spec.yaml"],
    "gate": ["last", "spec.yaml"], "push": ["last", "rows", "org/name"], "try": ["spec.yaml", "answers", "Why?"],
    "view": ["last"], "tag": ["last", "good"], "merge": ["last", "rows", "out"], "import": ["last", "answers.jsonl"],
}  # fmt: skip
"""The commands that read or write the store, with arguments."""
OTHERS: Mapping[str, list[str]] = {
    "specs": [], "init": ["quickstart", "demo"], "head": ["rows.jsonl"], "validate": ["spec.yaml"],
    "ops": ["load"], "schema": [], "constitution": ["show", "harmless"], "completion": ["bash"],
    "submit": ["spec.yaml", "--store", "/store", "--kuberay", "image"],
}  # fmt: skip


def test_every_command_is_tried() -> None:
    assert {*KEEPING, *OTHERS} == set(COMMANDS)
    assert not KEEPING.keys() & OTHERS.keys()


@pytest.mark.parametrize("command", KEEPING)
def test_what_to_set_is_said(homeless: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *KEEPING[command]]) != 0
    said = capsys.readouterr()
    assert "set CAIFLOW_HOME to a folder" in " ".join((said.out + said.err).split())
    assert "Traceback" not in said.out + said.err
    assert not home().exists()


@pytest.mark.parametrize("command", OTHERS)
def test_what_keeps_nothing_needs_no_home(homeless: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *OTHERS[command]]) == 0, capsys.readouterr()


def test_once_it_is_set_all_is_well(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIFLOW_HOME", str(homeless / "kept"))
    assert main(["validate", "spec.yaml"]) == main(["plan", "spec.yaml"]) == 0
