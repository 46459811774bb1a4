"""How the problems of a spec are shown to somebody at a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from caiflow.engine.commands.validate import SHOWN, with_source
from caiflow.engine.errors import Problem
from caiflow.engine.store.journal import read_run
from support.commands import command_here

SPEC = "caiflow: 1\nsteps:\n  red: {op: load, source: red.jsonl, limitt: 3}\n  ask: {op: genrate, input: red}\n"


def test_a_problem_has_its_line_and_a_caret_below_its_place(tmp_path: Path) -> None:
    (tmp_path / "cai.yaml").write_text(SPEC)
    lines = with_source(Problem(str(tmp_path / "cai.yaml"), 4, 13, "", "unknown", "write it")).splitlines()
    assert lines[0].endswith("cai.yaml:4:13: unknown; write it")
    assert lines[1] == "    4 |   ask: {op: genrate, input: red}"
    assert lines[1][lines[2].index("^") :].startswith("genrate")


def test_a_long_line_is_shown_around_the_place_and_a_place_in_no_file_without_one(tmp_path: Path) -> None:
    (tmp_path / "cai.yaml").write_text("a: " + "x" * 200 + "HERE" + "y" * 200)
    lines = with_source(Problem(str(tmp_path / "cai.yaml"), 1, 204, "", "unknown", "")).splitlines()
    assert lines[1][lines[2].index("^") :].startswith("HERE")
    assert len(lines[1]) == len("    1 | ") + SHOWN
    assert with_source(Problem("--set seed", 1, 1, "", "unknown", "")) == "--set seed:1:1: unknown"


def test_at_a_terminal_problems_are_shown_so_and_counted(tmp_path: Path) -> None:
    (tmp_path / "cai.yaml").write_text(SPEC)
    (tmp_path / "red.jsonl").write_text('{"prompt": "How?"}\n')
    near, far = pty.openpty()
    command = [sys.executable, "-m", "caiflow.engine.cli", "validate", "cai.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=far, stderr=subprocess.STDOUT) as running:
        os.close(far)
        said = b""
        while part := _read(near):
            said += part
    shown = said.decode().replace("\r\n", "\n")
    assert running.returncode == 2
    assert "    4 |   ask: {op: genrate, input: red}\n" in shown
    assert shown.endswith("2 problems\n")


def _read(near: int) -> bytes:
    try:
        return os.read(near, 65536)
    except OSError:  # the other end was closed
        return b""


def test_a_servers_key_that_is_not_set_is_remarked_and_no_run_begins_without_it(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        'caiflow: 1\nmodels: {judge: {source: m, base_url: "http://127.0.0.1:9/v1", api_key_env: NO_SUCH_KEY}}\n'
        'steps:\n  rows: {op: load, source: "tiny:red_team_test.jsonl", format: hh}\n'
        "  answer: {op: generate, input: rows, model: judge}\n"
    )
    said = command_here(tmp_path, "validate", "spec.yaml")
    assert said.returncode == 0
    assert "remark: spec.yaml:2:77: the variable NO_SUCH_KEY isn't set here" in said.stdout
    assert "remark" not in command_here(tmp_path, "validate", "spec.yaml", NO_SUCH_KEY="x").stdout
    ran = command_here(tmp_path, "run", "spec.yaml", "--out", "out", CAIFLOW_HOME=str(tmp_path / "home"))
    assert ran.returncode == 1
    assert "models.judge.api_key_env: the variable NO_SUCH_KEY isn't set" in ran.stderr
    assert [step["rows_out"] for step in read_run(tmp_path / "out")["steps"].values()] == [None, None]
