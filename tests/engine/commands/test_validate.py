"""How the problems of a spec are shown to somebody at a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from caiflow.engine.commands.validate import SHOWN, with_source
from caiflow.engine.errors import Problem

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
