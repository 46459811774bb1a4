"""Measures generate -> critique -> revise against what people write by hand, on one machine, in turns.

Warm engines: rows per second and, on vLLM, steps of its scheduler. Whole processes: from the start of the command to its end,
one engine load each. Run `python -m benchmarks.streaming` within tests/; see whole.py for distilabel.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import whole
from benchmarks.chain import Lengths, save_model
from benchmarks.contenders import LOADERS, MARK
from benchmarks.ways import SLOTS

TESTS = Path(__file__).parents[1]
ROWS = 4 * SLOTS
FEW = 24
"""Rows for the contender that takes them one at a time: its rate doesn't hang on their number."""
REPEATS = 5
LENGTHS: tuple[Lengths, ...] = ("even", "long_tailed")
Lines = list[dict[str, Any]]
Runs = dict[str, list[dict[str, Any]]]


class Seat:
    """A contender in a process of its own, which stays warm between orders."""

    def __init__(self, contender: str, model: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._log = model.parent / f"{contender}.log"
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.contenders", contender, str(model)], cwd=TESTS, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> None:
        """Wait until the model is loaded."""
        self._answer()

    def run(self, rows: int, lengths: Lengths) -> dict[str, Any]:
        """Have the work done once and return its figures."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"rows": rows, "lengths": lengths}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process, and what it may have started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
        said = self._log.read_text(encoding="utf-8")[-3000:]
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}:\n{said}")


def warm(
    model: Path, repeats: int = REPEATS, rows: int = ROWS, names: Sequence[str] = tuple(LOADERS), *, together: bool = True
) -> dict[Lengths, Runs]:
    """Return each contender's figures, run after run, for both kinds of lengths.

    All are loaded and take turns, or come one after the other where not `together`: a GPU's memory holds one of them.
    """
    found: dict[Lengths, Runs] = {lengths: {name: [] for name in names} for lengths in LENGTHS}
    for present in [list(names)] if together else [[name] for name in names]:
        with ExitStack() as stack:
            seats = {}
            for contender in present:  # one after the other: loading takes all cores
                seats[contender] = Seat(contender, model)
                stack.callback(seats[contender].close)
                seats[contender].ready()
            for lengths in LENGTHS:
                _take_turns(seats, lengths, repeats, rows, found[lengths])
    return found


def _take_turns(seats: Mapping[str, Seat], lengths: Lengths, repeats: int, rows: int, found: Runs) -> None:
    for repeat in range(repeats + 1):
        for contender, seat in seats.items():
            figures = seat.run(FEW if contender == "one_by_one" else rows, lengths)
            if repeat:  # the first round warms up
                found[contender].append(figures)


def rate(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the median of rows per second."""
    return statistics.median(run["rows"] / run["seconds"] for run in runs)


def spread(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the slowest and the fastest run's rows per second."""
    rates = [run["rows"] / run["seconds"] for run in runs]
    return f"{min(rates):.1f} to {max(rates):.1f}"


PAIRS = (
    ("caiflow_vllm", "staged", "vLLM, against LLM.chat stage by stage"),
    ("caiflow_vllm", "async", "vLLM, against rows chained on AsyncLLM"),
    ("caiflow_vllm", "one_by_one", "vLLM, against transformers one prompt at a time"),
    ("caiflow_transformers", "one_by_one", "transformers, against one prompt at a time"),
)


def warm_lines(found: Mapping[str, list[dict[str, Any]]], lengths: Lengths) -> Lines:
    """Return the comparisons of one kind of lengths, and on vLLM the steps."""
    lines = []
    for ours, theirs, title in PAIRS:
        if not {ours, theirs} <= found.keys():
            continue
        mine, other = rate(found[ours]), rate(found[theirs])
        name = f"{lengths} lengths on {title}"
        line: dict[str, Any] = {"name": name, "ours": round(mine, 2), "theirs": round(other, 2), "unit": "rows/s"}
        line |= {"ratio": round(mine / other, 3), "runs": len(found[ours])}
        for side, runs in (("ours", found[ours]), ("theirs", found[theirs])):
            line |= {f"spread_{side}": spread(runs), f"tokens_per_s_{side}": round(rate(runs) * _tokens_per_row(runs))}
        lines.append(line)
    steps = {one: statistics.median(run["steps"] for run in found[one]) for one in ("caiflow_vllm", "staged")}
    name = f"{lengths} lengths, steps of vLLM's scheduler, {found['staged'][0]['rows']} rows in {SLOTS} slots"
    line = {"name": name, "ours": steps["caiflow_vllm"], "theirs": steps["staged"], "unit": "steps"}
    return [*lines, {**line, "ratio": round(steps["staged"] / steps["caiflow_vllm"], 3), "runs": len(found["staged"])}]


def _tokens_per_row(runs: Sequence[Mapping[str, Any]]) -> float:
    return float(runs[0]["tokens"] / runs[0]["rows"])


def measure(
    repeats: int = REPEATS, rows: int = ROWS, size: str = "tiny", dtype: str = "float32", *, together: bool = True
) -> Lines:
    """Return a line per comparison: warm engines on both kinds of lengths, then whole processes with four times the rows."""
    lines: Lines = []
    with tempfile.TemporaryDirectory() as scratch:
        model = save_model(Path(scratch) / "model", size, dtype)
        for lengths, found in warm(model, repeats, rows, together=together).items():
            lines += warm_lines(found, lengths)
        print(json.dumps(lines), file=sys.stderr, flush=True)  # what comes next takes long, too
        return lines + whole.measure(model, Path(scratch), 4 * rows, min(repeats, 3))


def main() -> None:
    """Measure with the numbers asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--rows", type=int, default=ROWS)
    given = parser.parse_args()
    began = time.perf_counter()
    print(json.dumps(measure(given.repeats, given.rows), indent=1))
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
