"""`make benchmark`: runs every comparison, prints a table, and writes the figures as JSON.

Each line compares two things measured in one run, or one thing with a target; a ratio above 1 is in caiflow's favour.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import commands, draws, ledger, loading, own_prefixes, prefixes, real, scheduler, streaming, tables, training

Lines = list[dict[str, Any]]
Measure = Callable[[], Lines]


class Suite(NamedTuple):
    """Comparisons at three sizes: all in five minutes, in some minutes each, as large as the design says."""

    quick: Measure | None
    usual: Measure
    full: Measure


SUITES = {
    "prefixes": Suite(lambda: prefixes.measure([1]), lambda: prefixes.measure([1]), prefixes.measure),
    "own_prefixes": Suite(lambda: own_prefixes.measure([1]), lambda: own_prefixes.measure([1]), own_prefixes.measure),
    "commands": Suite(lambda: commands.measure(5, 1), commands.measure, lambda: commands.measure(50, 3)),
    "scheduler": Suite(
        lambda: scheduler.measure(scheduler.SIZES[:1]),
        scheduler.measure,
        lambda: scheduler.measure((*scheduler.SIZES, 100_000, scheduler.FULL)),
    ),
    "ledger": Suite(
        lambda: ledger.measure(50_000, 1), lambda: ledger.measure(200_000, 1), lambda: ledger.measure(ledger.RECORDS, 1)
    ),
    "loading": Suite(lambda: loading.measure(20_000, 1, 100_000), lambda: loading.measure(50_000, 3, 500_000), loading.measure),
    "tables": Suite(
        lambda: tables.measure(50_000, 1), lambda: tables.measure(100_000, 3), lambda: tables.measure(tables.ROWS, 3)
    ),
    "streaming": Suite(None, lambda: streaming.measure(repeats=3), streaming.measure),
    "draws": Suite(None, lambda: draws.measure(repeats=5), draws.measure),
    "training": Suite(None, lambda: training.measure(repeats=3), training.measure),
    "real": Suite(None, lambda: real.measure(repeats=1), lambda: real.measure(128, 256)),
}


def main() -> None:
    """Run the suites asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.json"))
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="counts and small sizes, in five minutes")
    size.add_argument("--full", action="store_true", help="the sizes of the design, instead of some minutes' worth")
    given = parser.parse_args()
    lines: Lines = []
    for name in given.only:
        suite = SUITES[name]
        measure = suite.quick if given.quick else suite.full if given.full else suite.usual
        lines += measure() if measure else []
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    show(lines)


def show(lines: Lines) -> None:
    """Print the figures as a table, counts beside the least they could be first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "caiflow", "other", "unit", "ratio", "runs")
    for line in sorted(lines, key=lambda line: not line["name"].startswith("floor")):
        table.add_row(*(str(line[name]) for name in ("name", "ours", "theirs", "unit", "ratio", "runs")))
    console = Console()
    console.print(table, width=None if console.is_terminal else 200)


if __name__ == "__main__":
    main()
