"""`caiflow report`: a run as one HTML file, which opens anywhere and asks nothing of anybody."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from caiflow.engine.commands.parser import named_run, nearby, positive, print_json
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow report last
  caiflow report last --compare baseline --out both.html
  caiflow report last --rows 1000                     # a smaller file
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("--compare", metavar="RUN", help="another run, shown beside it, rows joined by uid")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file (default report.html in the run's folder)")
    parser.add_argument("--rows", metavar="N", type=positive, default=100_000, help="most rows of each step (default 100000)")
    parser.add_argument("--json", action="store_true", help="print where it is as JSON")


def execute(args: Namespace) -> int:
    """Write the report and say where it is."""
    from caiflow.engine.lookback.opened import Run
    from caiflow.engine.lookback.report.page import page
    from caiflow.engine.store.disk import write_atomic

    run_dir = named_run(args.run)
    other = Run(named_run(args.compare)) if args.compare else None
    path: Path = args.out or run_dir / "report.html"
    write_atomic(path, page(Run(run_dir), other, limit=args.rows))
    if args.json:
        print_json("report", {"path": str(path.absolute()), "size_bytes": path.stat().st_size})
        return 0
    say(f"wrote {nearby(path.absolute())}, {path.stat().st_size / 1e6:,.1f} MB; open it in a browser")
    return 0
