"""`caiflow verify`: hash a run's artifacts again and compare them with what was sealed and locked."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from caiflow.engine.commands.parser import named_run, nearby, print_json
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow verify last
  caiflow verify runs/cai/20250101-120000 --json
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def execute(args: Namespace) -> int:
    """Verify each step; 1 if any file isn't what it was."""
    from caiflow.engine.lookback.verify import verify

    verdicts = []
    run_dir = named_run(args.run)
    for verdict in verify(run_dir):
        verdicts.append(verdict)
        if not args.json:
            said = f"{verdict.files} files as they were sealed" if not verdict.problems else "; ".join(verdict.problems)
            say(f"{'✗' if verdict.problems else '✓'} {verdict.step:<20} {said}", flush=True)
    if args.json:
        print_json("verify", {"steps": [asdict(verdict) for verdict in verdicts]})
    damaged = any(verdict.problems for verdict in verdicts)
    if damaged and not args.json:
        say(f"what isn't as it was sealed is made anew by: caiflow run {nearby(run_dir) / 'spec.yaml'}")
    return int(damaged)
