"""Benchmarks of which each side runs in a process of its own, that of the module itself: `python -m MODULE --side SIDE`."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from caiflow.engine.machine import forget_peaks, peaks


def spent(file: str, side: str, source: Path, out: Path) -> dict[str, float]:
    """Return what a side tells that reads `source` and writes into `out`, which is removed; `file` is its module's."""
    module = f"{Path(file).parent.name}.{Path(file).stem}"
    command = [sys.executable, "-m", module, "--side", side, "--source", str(source), "--out", str(out)]
    done = subprocess.run(command, cwd=Path(file).parents[1], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    shutil.rmtree(out)
    return found


def peak_mb() -> float:
    """Return the most memory that this process has had, in MB.

    What the system says of a process begun by a larger one is on Linux at least what that one had then.
    """
    if told := peaks().get("peak_memory_bytes"):
        return told / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, where it isn't Linux


def peak_from_now(work: Callable[[], object]) -> float:
    """Carry out some work; return the most memory that this process had meanwhile, in MB, or on other systems until then."""
    forget_peaks()
    work()
    return peak_mb()


def main(
    about: str | None,
    sides: Collection[str],
    one_side: Callable[[str, Path, Path], None],
    measure: Callable[[int, int], list[dict[str, Any]]],
    rows: int,
) -> None:
    """Carry out the side that the command line names, or measure all of them and print the figures."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=sides)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.side:
        one_side(given.side, given.source, given.out)
    else:
        print(json.dumps(measure(given.rows, given.repeats), indent=2))
