"""`caiflow runs`: the runs that used this machine's store."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from caiflow.engine.commands.parser import open_store, positive, print_json
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow runs
  caiflow runs --limit 50 --json
  caiflow runs --tag baseline                     # see caiflow tag --help
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `runs`."""
    parser.add_argument("--limit", metavar="N", type=positive, default=20, help="show the latest N runs (default 20)")
    parser.add_argument("--tag", metavar="TAG", help="show only the runs that have this tag")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON")


def execute(args: Namespace) -> int:
    """List runs, the latest last."""
    from caiflow.engine.lookback.history import list_runs

    found = [run for run in list_runs(open_store()) if args.tag is None or args.tag in run.tags]
    runs = found[-args.limit :]
    if args.json:
        print_json("runs", {"runs": [asdict(run) for run in runs]})
        return 0
    from caiflow.engine.commands.tables import runs_table, uncut
    from caiflow.engine.display.console import unbroken_console

    if not runs:
        none = f"no run has the tag {args.tag}" if args.tag else "no runs yet; caiflow init copies a recipe to begin with"
        say(none)
        return 0
    table = uncut(runs_table(runs))
    unbroken_console().print(table)
    return 0
