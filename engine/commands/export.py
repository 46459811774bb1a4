"""`caiflow export`: a folder from which another person can repeat a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import allowed_by, allowing_arguments, named_run, open_store, print_json
from caiflow.engine.display.terminal import say

if TYPE_CHECKING:
    from caiflow.engine.lookback.export import Export
    from caiflow.engine.run.batching import Passage
    from caiflow.engine.spec.permissions import Permissions

EXAMPLES = """\
  caiflow export last handover
  cd handover && caiflow run spec.yaml --locked
  caiflow export last archive --results             # rows, models and figures too: caiflow show archive clean
  caiflow export last handover --as inspect         # logs for inspect view; --as reward: functions for GRPOTrainer
  caiflow export last asked --as batch              # requests for a provider's batch API; caiflow import takes the answers
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
        "--as", dest="tool", metavar="TOOL", choices=("inspect", "verifiers", "reward", "batch"),
        help="also write what another tool takes: inspect (logs of its evaluations), verifiers (their prompts and checks as "
        "a task set), reward (functions for TRL's trainers), batch (requests of served models for a batch API)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was written, and what wasn't, as JSON")


def execute(args: Namespace) -> int:
    """Write the folder and say what it lacks."""
    from caiflow.engine.lookback.export import export, write_for, write_results
    from caiflow.engine.run.batching import Passage, write_requests
    from caiflow.engine.spec.reach import flag_for

    allowed = allowed_by(args)._replace(paths=tuple(args.allowed_paths))
    run_dir = named_run(args.run)
    waiting = _waiting(run_dir, allowed) if args.tool == "batch" else Passage()
    made = export(run_dir, args.dir, open_store(), allowed=allowed)
    made = replace(made, files=(*made.files, *write_results(run_dir, args.dir, whole=args.results)))
    if args.tool == "batch":
        made = replace(made, files=(*made.files, *(f"batch/{name}" for name in write_requests(waiting, args.dir / "batch"))))
    elif args.tool:
        made = replace(made, files=(*made.files, *write_for(args.tool, run_dir, args.dir)))
    if args.json:
        print_json("export", {**_as_json(made), "waiting": told_waiting(waiting)})
        return 0
    say(f"wrote {made.path}: {', '.join(made.files)}")
    for line in (*waiting.lessons, *in_words(waiting)):
        say(line)
    for path in made.left_out:
        say(f"too large to come along: {path}")
    for path in made.unasked:
        say(f"outside the working folder, left there: {path}; to take it along, say {flag_for(path)}")
    for drift in made.drift:
        say(f"changed since the run: {drift}")
    onward = "caiflow import RUN ANSWERS..." if waiting.steps else f"cd {made.path} && caiflow run spec.yaml --locked"
    say(f"next: {onward}".replace("RUN", args.run))
    return 0


def _waiting(run_dir: Path, allowed: Permissions) -> Passage:
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.run.batching import pass_rows, require_waiting
    from caiflow.engine.spec.load import load_spec

    spec = load_spec(run_dir / "spec.yaml", allowed=allowed.paths)
    passage = pass_rows(Resolver(spec, open_store(), allowed=allowed), allowed)
    require_waiting(passage)
    return passage


def in_words(passage: Passage) -> Iterator[str]:
    """Yield what waits for answers, a line for each step."""
    for step in passage.steps:
        if step.calls:
            yield f"{step.step}: {len(step.calls)} calls of {step.model} wait for answers"
    yield from passage.first
    yield from passage.capped


def told_waiting(passage: Passage) -> list[dict[str, Any]]:
    """Return the same as plain values."""
    return [{"step": step.step, "model": step.model, "calls": len(step.calls)} for step in passage.steps if step.calls]


def _as_json(made: Export) -> dict[str, Any]:
    return {
        "folder": str(made.path),
        "files": list(made.files),
        "left_out": list(map(str, made.left_out)),
        "unasked": list(map(str, made.unasked)),
        "drift": list(map(str, made.drift)),
    }
