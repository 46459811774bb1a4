"""`caiflow push`: what a step made as a repository of the hub, with its card, its figures and the recipe that made it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import allowed_by, allowing_arguments, named_run, one_of, open_store, print_json
from caiflow.engine.display.terminal import say

if TYPE_CHECKING:
    from caiflow.engine.lookback.hub import Pushed

EXAMPLES = """\
  caiflow push last rl_cai me/kind-llama --dry-run     # what would be there, and its card
  caiflow push last rl_cai me/kind-llama --private
  caiflow push last preference me/kind-pairs --license cc-by-4.0
  caiflow init hub:me/kind-llama again                 # the recipe back, elsewhere
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `push`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("step", metavar="STEP", help="a step that made a model or rows")
    parser.add_argument("repo", metavar="REPO", help="OWNER/REPO on the hub, made where there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", metavar="ID", default="", help="the licence under which you publish, in the hub's words")
    parser.add_argument("--message", metavar="TEXT", default="", help="the commit's message (default: run and step)")
    parser.add_argument("--dry-run", action="store_true", help="ask the hub nothing; print the files and the card")
    parser.add_argument("--json", action="store_true", help="print what is there, and where, as JSON")
    allowing_arguments(parser)


def execute(args: Namespace) -> int:
    """Push the step."""
    from caiflow.engine.lookback.hub import lay_out, push
    from caiflow.engine.store.journal import read_run

    run_dir = named_run(args.run)
    run = read_run(run_dir)
    one_of(args.step, run["steps"], "steps")
    allowed = allowed_by(args)._replace(paths=tuple(args.allowed_paths))
    with TemporaryDirectory(prefix="caiflow-push-") as folder:
        made = lay_out(run_dir, args.step, Path(folder), open_store(), allowed, args.license)
        text = (Path(folder) / "README.md").read_text(encoding="utf-8")
        if not args.dry_run:
            message = args.message or f"{args.step} of {run['name']}, made by caiflow"
            made = push(Path(folder), made, args.repo, private=args.private, message=message)
    if args.json:
        print_json("push", _as_json(made, text))
        return 0
    _show(made, args.repo, text if args.dry_run else "")
    return 0


def _as_json(made: Pushed, text: str) -> dict[str, Any]:
    return {
        "kind": made.kind,
        "url": made.url or None,
        "commit": made.commit or None,
        "files": list(made.files),
        "card": text,
        "left_out": [str(path) for path in (*made.exported.left_out, *made.exported.unasked)],
    }


def _show(made: Pushed, repo: str, text: str) -> None:
    if text:
        say(f"would be pushed to {repo}, a {made.kind} repository: {', '.join(made.files)}\n\n{text}")
    else:
        say(f"pushed {len(made.files)} files to {made.url}")
    for path in (*made.exported.left_out, *made.exported.unasked):
        say(f"not in its recipe: {path}, which is too large or outside the working folder (see caiflow export --help)")
