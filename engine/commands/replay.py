"""`caiflow replay`: ask random rows of a run again, and say whether its models still answer as they did."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import asdict

from caiflow.engine.commands.parser import allowed_by, allowing_arguments, named_run, open_store, print_json
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow replay last
  caiflow replay runs/cai/20250101-120000 critique preference --share 5%
  caiflow replay last --share 0.02 --json | jq -r '.steps[] | select(.verdict == "drifted") | .step'
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `replay`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("steps", metavar="STEP", nargs="*", help="steps that ask a model row by row (default: all of them)")
    parser.add_argument(
        "--share", metavar="SHARE", type=_share, default=0.01,
        help="rows of each step that are asked again, such as 1%% or 0.01 (default 1%%); one at least",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="which rows are drawn (default 0)")
    allowing_arguments(parser)
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let model repositories run their own code on this machine (off)"
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def execute(args: Namespace) -> int:
    """Ask again, and keep nothing of it; 1 if a model drifted or couldn't be asked."""
    from caiflow.engine.lookback.replay import as_shown, replay
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.plan.consent import refuse_unallowed, with_typed
    from caiflow.engine.spec.load import load_spec

    run_dir = named_run(args.run)
    spec, allowed = load_spec(run_dir / "spec.yaml", allowed=args.allowed_paths), allowed_by(args)
    refuse_unallowed(spec.models, with_typed(spec.models, spec.source, allowed), trust_remote_code=args.trust_remote_code)
    resolver = Resolver(spec, open_store(), trust_remote_code=args.trust_remote_code, allowed=allowed)
    found = replay(resolver, run_dir, args.steps, args.share, args.seed)
    if args.json:
        print_json("replay", {"steps": [{**asdict(one), "verdict": one.verdict} for one in found]})
    else:
        for line in as_shown(found):
            say(line)
    return int(any(one.verdict in ("drifted", "failed") for one in found))


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ArgumentTypeError(f"a share is above 0% and at most 100%, got {text!r}")
    return share
