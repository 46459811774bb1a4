"""`caiflow merge`: a trained adapter folded into its model's weights, without training again."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from caiflow.engine.commands.parser import named_run, open_store, print_json
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow merge last sl_cai whole            # of a step with `merge: false`
  caiflow merge last sl_cai whole --json
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `merge`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("step", metavar="STEP", help="a step that trained adapters, or a name under `models` that has one")
    parser.add_argument("dir", metavar="DIR", type=Path, help="a new or empty folder")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def execute(args: Namespace) -> int:
    """Write the whole model; the run stays as it is."""
    from caiflow.engine.lookback.models import merge
    from caiflow.engine.store.file_digests import folder_files

    merge(named_run(args.run), args.step, args.dir, open_store())
    files = folder_files(args.dir)
    if args.json:
        print_json("merge", {"folder": str(args.dir), "files": files})
    else:
        say(f"wrote {args.dir}: {', '.join(files)}")
    return 0
