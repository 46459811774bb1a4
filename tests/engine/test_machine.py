"""A user without a home folder is told what to set, and needs nothing else."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.cli import main
from caiflow.engine.machine import home

SPEC = "caiflow: 1\nsteps: {rows: {op: load, source: rows.jsonl}}\n"


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


@pytest.mark.parametrize("command", [["plan", "spec.yaml"], ["run", "spec.yaml"], ["runs"], ["gc"]])
def test_what_to_set_is_said(homeless: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) != 0
    said = capsys.readouterr()
    assert "set CAIFLOW_HOME to a folder" in said.out + said.err
    assert "Traceback" not in said.out + said.err
    assert not home().exists()


def test_once_it_is_set_all_is_well(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIFLOW_HOME", str(homeless / "kept"))
    assert main(["validate", "spec.yaml"]) == main(["plan", "spec.yaml"]) == 0
