"""`caiflow export`: a folder from which another person can repeat a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import allowed_by, allowing_arguments, named_run, open_store, print_json
from caiflow.engine.display.terminal import say

if TYPE_CHECKING:
    from caiflow.engine.lookback.export import Export

EXAMPLES = """\
  caiflow export last handover
  cd handover && caiflow run spec.yaml --locked
  caiflow export last archive --results             # rows, models and figures too: caiflow show archive clean
  caiflow export last handover --as inspect         # logs for inspect view; --as reward: functions for GRPOTrainer
  caiflow export last handover --allow-path ~/data  # files outside the working folder come along only so
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("dir", metavar="DIR", type=Path, help="a new or empty folder")
    allowing_arguments(parser)
    parser.add_argument(
        "--results", action="store_true", help="also copy what the steps made, so that `show` works on the folder"
    )
    parser.add_argument(
        "--as", dest="tool", metavar="TOOL", choices=("inspect", "reward"),
        help="also write what another tool takes: inspect (logs of its evaluations), reward (functions for TRL's trainers)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was written, and what wasn't, as JSON")


def execute(args: Namespace) -> int:
    """Write the folder and say what it lacks."""
    from caiflow.engine.lookback.export import export, write_for, write_results
    from caiflow.engine.spec.reach import flag_for

    allowed = allowed_by(args)._replace(paths=tuple(args.allowed_paths))
    run_dir = named_run(args.run)
    made = export(run_dir, args.dir, open_store(), allowed=allowed)
    made = replace(made, files=(*made.files, *write_results(run_dir, args.dir, whole=args.results)))
    if args.tool:
        made = replace(made, files=(*made.files, *write_for(args.tool, run_dir, args.dir)))
    if args.json:
        print_json("export", _as_json(made))
        return 0
    say(f"wrote {made.path}: {', '.join(made.files)}")
    for path in made.left_out:
        say(f"too large to come along: {path}")
    for path in made.unasked:
        say(f"outside the working folder, left there: {path}; to take it along, say {flag_for(path)}")
    for drift in made.drift:
        say(f"changed since the run: {drift}")
    say(f"next: cd {made.path} && caiflow run spec.yaml --locked")
    return 0


def _as_json(made: Export) -> dict[str, Any]:
    return {
        "folder": str(made.path),
        "files": list(made.files),
        "left_out": list(map(str, made.left_out)),
        "unasked": list(map(str, made.unasked)),
        "drift": list(map(str, made.drift)),
    }
