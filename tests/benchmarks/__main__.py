"""`make benchmark`: runs every comparison, prints a table, and writes the figures as JSON.

Each line compares two things measured in one run, or one thing with a target; a ratio above 1 is in caiflow's favour.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import commands, draws, ledger, own_prefixes, prefixes, real, scheduler, streaming, tables, training

Lines = list[dict[str, Any]]
SUITES: dict[str, tuple[Callable[[], Lines], Callable[[], Lines]]] = {
    "commands": (commands.measure, lambda: commands.measure(50, 3)),
    "scheduler": (scheduler.measure, lambda: scheduler.measure((*scheduler.SIZES, 100_000, scheduler.FULL))),
    "ledger": (lambda: ledger.measure(200_000, 1), lambda: ledger.measure(ledger.RECORDS, 1)),
    "tables": (lambda: tables.measure(100_000, 3), lambda: tables.measure(tables.ROWS, 3)),
    "streaming": (lambda: streaming.measure(repeats=3), streaming.measure),
    "prefixes": (lambda: prefixes.measure([1]), prefixes.measure),
    "own_prefixes": (lambda: own_prefixes.measure([1]), own_prefixes.measure),
    "draws": (lambda: draws.measure(repeats=5), draws.measure),
    "training": (lambda: training.measure(repeats=3), training.measure),
    "real": (lambda: real.measure(repeats=1), lambda: real.measure(128, 256)),
}
"""Each suite at a size for a few minutes, and at its full size."""


def main() -> None:
    """Run the suites asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.json"))
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--full", action="store_true", help="the sizes of the design, instead of some minutes' worth")
    given = parser.parse_args()
    lines: Lines = []
    for name in given.only:
        lines += SUITES[name][given.full]()
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    show(lines)


def show(lines: Lines) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "caiflow", "other", "unit", "ratio", "runs")
    for line in lines:
        table.add_row(*(str(line[name]) for name in ("name", "ours", "theirs", "unit", "ratio", "runs")))
    Console().print(table)


if __name__ == "__main__":
    main()
