"""Measures commands as whole processes, against the design's bounds: `validate` of a recipe, `gc` of a large store.

Seconds on the clock are the figure, which another load on the machine lengthens; the line beside it, of the same runs, has the
seconds of the CPU, which it lengthens less. Run `python -m benchmarks.commands` within tests/.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.large_store import fill
from support.source_tree import ROOT

VALIDATE_TARGET_S = 0.25
GC_TARGET_S = 5.0
ARTIFACTS, RUNS = 10_000, 1_000


class Spent(NamedTuple):
    """Seconds of one command: on the clock, and of the CPU."""

    clock: float
    cpu: float


def spent(arguments: Sequence[str], **variables: str) -> Spent:
    """Run a command as its user does, from a folder of compiled modules, and return what it took."""
    command = [str(Path(sys.executable).with_name("caiflow")), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | variables
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    clock, after = time.perf_counter() - began, os.times()
    children = (
        after.children_user - before.children_user,
        after.children_system - before.children_system,
    )
    return Spent(clock, sum(children))


def validated(scratch: Path) -> Spent:
    """Return what `validate` of the quickstart takes."""
    return spent(["validate", "specs/quickstart.yaml"], PYTHONPYCACHEPREFIX=str(scratch / "compiled"))


def cleaned(scratch: Path) -> Spent:
    """Return what `gc` takes in a store most of which can go."""
    home = scratch / "home"
    shutil.rmtree(home, ignore_errors=True)
    fill(home, ARTIFACTS, RUNS)
    return spent(["gc"], CAIFLOW_HOME=str(home), PYTHONPYCACHEPREFIX=str(scratch / "compiled"))


def measure(validations: int = 15, cleanings: int = 1) -> list[dict[str, Any]]:
    """Return two lines a command; a first run of each, which compiles the modules, isn't counted."""
    with tempfile.TemporaryDirectory() as scratch:
        lines = _lines("validate of the quickstart", validated, Path(scratch), validations, VALIDATE_TARGET_S)
        name = f"gc of {ARTIFACTS:,} artifacts and {RUNS:,} runs"
        return [*lines, *_lines(name, cleaned, Path(scratch), cleanings, GC_TARGET_S)]


def _lines(name: str, run: Callable[[Path], Spent], scratch: Path, runs: int, target_s: float) -> list[dict[str, Any]]:
    run(scratch)
    found = [run(scratch) for _ in range(runs)]
    kinds = {"": [one.clock for one in found], ", CPU": [one.cpu for one in found]}
    medians = {kind: statistics.median(values) for kind, values in kinds.items()}
    return [
        {
            "name": f"{name}{kind}",
            "ours": round(took, 3),
            "theirs": target_s,
            "unit": "s",
            "ratio": round(target_s / took, 2),
            "runs": runs,
        }
        for kind, took in medians.items()
    ]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
