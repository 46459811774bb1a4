"""`caiflow tag`: tags and a note on a run, by which people find it again."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from caiflow.engine.commands.parser import named_run, print_json
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow tag last paper-figures baseline
  caiflow tag last --note "the judge still flips; see rows 3 to 9"
  caiflow tag last --remove baseline
  caiflow runs --tag paper-figures
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `tag`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("tags", metavar="TAG", nargs="*", help="a tag to add")
    parser.add_argument("--remove", metavar="TAG", action="append", default=[], help="a tag to take away; may be repeated")
    parser.add_argument("--note", metavar="TEXT", help="a note in place of the run's own; empty for none")
    parser.add_argument("--json", action="store_true", help="print what is said of the run now as JSON")


def execute(args: Namespace) -> int:
    """Change the tags and the note where that is asked, and print them."""
    from caiflow.engine.lookback.tags import said_of, say_of

    run_dir = named_run(args.run)
    changes = args.tags or args.remove or args.note is not None
    said = say_of(run_dir, add=args.tags, remove=args.remove, note=args.note) if changes else said_of(run_dir)
    if args.json:
        print_json("tag", {"run": str(run_dir.absolute()), "tags": list(said.tags), "note": said.note})
    else:
        say("\n".join([f"tags: {', '.join(said.tags) or 'none'}", *([f"note: {said.note}"] if said.note else [])]))
    return 0
