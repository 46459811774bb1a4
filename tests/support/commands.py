"""The command line in this process, as a user gives it: its exit code and what it prints, without the cost of a start."""

from __future__ import annotations

import io
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.cli import main
from caiflow.engine.store.journal import read_run


def command_here(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Give the command in a folder, with these variables beside this process's own; return what came of it."""
    printed, complained = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(complained):
        patch.chdir(place)
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, printed.getvalue(), complained.getvalue())


def run_here(address: str, spec: Path, out: Path, home: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """Run a spec to its end on the Ray at `address`; return its run.json. What was printed is kept in `out`/console.txt."""
    arguments = ("run", str(spec), "--out", str(out), "--address", address, *options)
    done = command_here(spec.parent, *arguments, CAIFLOW_HOME=str(home))
    assert done.returncode == code, done.stdout + done.stderr
    (out / "console.txt").write_text(done.stderr + done.stdout, encoding="utf-8")
    return read_run(out)
