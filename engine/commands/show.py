"""`caiflow show`: a run, or the output of one of its steps, rows page by page."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import from_zero, named_run, one_of, print_json
from caiflow.engine.display.terminal import say

if TYPE_CHECKING:
    from caiflow.engine.rows.folder import Rows

EXAMPLES = """\
  caiflow show last                                   # the steps and figures of the latest run
  caiflow show last revision --limit 3                # rows
  caiflow show last clean --offset 100 --columns critique,revision
  caiflow show last clean --dropped                   # what was left out, and why
  caiflow show runs/cai/20250101-120000 scores        # an evaluation's figures
  caiflow show last preference --json --limit 1000 > rows.jsonl
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `show`."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, its name, its spec's name, or last")
    parser.add_argument("step", metavar="STEP", nargs="?", help="a step of the run")
    parser.add_argument("--offset", metavar="N", type=from_zero, default=0, help="skip N rows")
    parser.add_argument("--limit", metavar="N", type=from_zero, default=10, help="show at most N rows (default 10)")
    parser.add_argument("--columns", metavar="A,B", help="show only these columns")
    parser.add_argument("--all", action="store_true", help="at a terminal, show the columns too that are for other steps")
    parser.add_argument("--uid", metavar="UID", help="show only rows whose uid begins so")
    parser.add_argument("--dropped", action="store_true", help="show the rows that were left out, with the reason")
    parser.add_argument("--json", action="store_true", help="print JSON: the run, or one line per row")


def execute(args: Namespace) -> int:
    """Show a run or a step."""
    from caiflow.engine.lookback.history import output_kind, step_dir

    run_dir = named_run(args.run)
    if args.step is None:
        _show_run(run_dir, args)
        return 0
    path = step_dir(run_dir, args.step)
    kind = output_kind(path)
    if kind == "rows":
        _show_rows(path, args)
        if not args.json:
            _show_principles(run_dir, args.step)
    elif kind == "metrics":
        _show_metrics(path, args)
    else:
        _show_model(path, args)
    if not args.json:
        _show_notes(run_dir, args.step)
    return 0


def _show_run(run_dir: Path, args: Namespace) -> None:
    from caiflow.engine.commands.run import print_end
    from caiflow.engine.store.journal import read_run

    if args.json:
        print_json("run", read_run(run_dir))
    else:
        print_end(run_dir)


def _show_notes(run_dir: Path, step: str) -> None:
    from caiflow.engine.display.console import Console
    from caiflow.engine.display.report import notes_text
    from caiflow.engine.store.journal import read_run

    console = Console()
    for note in notes_text(read_run(run_dir), step):
        console.print(note)


def _show_principles(run_dir: Path, step: str) -> None:
    from caiflow.engine.display.console import unbroken_console
    from caiflow.engine.display.report import by_principle
    from caiflow.engine.store.journal import read_run

    console = unbroken_console()
    if (table := by_principle(read_run(run_dir)["steps"][step].get("metrics") or {})) is not None:
        console.print(table)


def _show_rows(path: Path, args: Namespace) -> None:
    import json

    from caiflow.engine.rows.folder import Rows

    rows = Rows(path).dropped() if args.dropped else Rows(path)
    page, total = _page(rows, args)
    columns = args.columns.split(",") if args.columns else None
    for column in columns or ():
        one_of(column, rows.columns, "columns")
    if args.json:
        for row in page:
            say(json.dumps({name: row[name] for name in columns or row}, ensure_ascii=False, default=str))
        return
    from caiflow.engine.commands.tables import row_card, row_text
    from caiflow.engine.display.console import unbroken_console

    console = unbroken_console()
    every = list(rows.columns) if args.all else columns
    for row in page:
        parts = row_card(row, console, every) if sys.stdout.isatty() else [row_text(row, columns)]
        console.print(*parts, sep="\n")
    if not args.uid:
        last = args.offset + len(page)
        more = f"; more with --offset {last}" if last < total else ""
        shown = f"rows {args.offset + 1} to {last} of {total:,}" if page else f"none of {total:,} rows"
        console.print(f"{shown}{more}", style="dim")


def _page(rows: Rows, args: Namespace) -> tuple[list[dict[str, Any]], int]:
    if args.uid:
        import polars as pl

        return rows.scan().filter(pl.col("uid").str.starts_with(args.uid)).head(args.limit).collect().to_dicts(), rows.num_rows
    return rows.pylist(args.offset, args.limit), rows.num_rows


def _show_metrics(path: Path, args: Namespace) -> None:
    from caiflow.engine.lookback.history import read_metrics

    metrics = read_metrics(path)
    if args.json:
        print_json("figures", metrics)
        return
    from caiflow.engine.display.console import unbroken_console
    from caiflow.engine.display.report import figures

    console = unbroken_console()
    for table in figures(metrics, args.step, console.width):
        console.print(table)


def _show_model(path: Path, args: Namespace) -> None:
    from caiflow.engine.lookback.history import model_card

    card = model_card(path)
    if args.json:
        print_json("model", card)
        return
    from caiflow.engine.commands.tables import uncut
    from caiflow.engine.display.console import Console
    from caiflow.engine.display.report import card_table

    console = Console()
    console.print(uncut(card_table(card)))
