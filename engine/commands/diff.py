"""`caiflow diff`: two runs side by side, rows joined by uid."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from caiflow.engine.commands.parser import from_zero, named_run, print_json

EXAMPLES = """\
  caiflow diff runs/cai/20250101-120000 last
  caiflow diff hard soft --examples 10
  caiflow diff hard soft --json | jq '.rows[] | {step, flips, pairs}'
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `diff`."""
    parser.add_argument("old", metavar="A", help="a run (see caiflow show --help)")
    parser.add_argument("new", metavar="B", help="another run")
    parser.add_argument(
        "--examples", metavar="N", type=from_zero, default=3, help="show N changed rows of each step (default 3)"
    )
    parser.add_argument("--all", action="store_true", help="show figures too that differ within their intervals")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")


def execute(args: Namespace) -> int:
    """Compare two runs; 0 whether or not they differ."""
    from caiflow.engine.lookback.compare import compare

    diff = compare(named_run(args.old), named_run(args.new), examples=args.examples)
    if args.json:
        print_json("diff", diff.as_json())
        return 0
    from caiflow.engine.commands.tables import diff_tables, uncut
    from caiflow.engine.display.console import unbroken_console

    console = unbroken_console()
    tables = list(diff_tables(diff.excerpts(), "A", "B", every=args.all))
    for table in tables:
        console.print(uncut(table))
        console.print()
    for found in diff.one_sided:
        here, there = ("A", "B") if found.made_in == "old" else ("B", "A")
        status = f" ({found.other} in {there})" if found.other else ""
        console.print(f"step {found.step}: only in {here}{status}")
    if not tables and not diff.one_sided:
        console.print("no difference")
    return 0
