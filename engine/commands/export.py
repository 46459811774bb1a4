"""`caiflow export`: a folder from which another person can repeat a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from caiflow.engine.commands.parser import allowed_by, allowing_arguments, named_run, open_store
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow export last handover
  cd handover && caiflow run spec.yaml --locked
  caiflow export last handover --allow-path ~/data  # files outside the working folder come along only so
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("dir", metavar="DIR", type=Path, help="a new or empty folder")
    allowing_arguments(parser)


def execute(args: Namespace) -> int:
    """Write the folder and say what it lacks."""
    from caiflow.engine.lookback.export import export
    from caiflow.engine.spec.reach import flag_for

    allowed = allowed_by(args)._replace(paths=tuple(args.allowed_paths))
    made = export(named_run(args.run), args.dir, open_store(), allowed=allowed)
    say(f"wrote {made.path}: {', '.join(made.files)}")
    for path in made.left_out:
        say(f"too large to come along: {path}")
    for path in made.unasked:
        say(f"outside the working folder, left there: {path}; to take it along, say {flag_for(path)}")
    for drift in made.drift:
        say(f"changed since the run: {drift}")
    say(f"next: cd {made.path} && caiflow run spec.yaml --locked")
    return 0
