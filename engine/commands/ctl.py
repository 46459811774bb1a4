"""`caiflow ctl`: have a living run rest, go on, or hold to other limits of its models."""

from __future__ import annotations

import math
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import named_run, one_of, positive, print_json
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import CaiflowError, SpecError

if TYPE_CHECKING:
    from caiflow.engine.store.controls import Controls

EXAMPLES = """\
  caiflow ctl last                                    # what is asked of the latest run
  caiflow ctl last pause
  caiflow ctl last resume
  caiflow ctl runs/cai/20250101-120000 concurrency 8 --model judge
  caiflow ctl last budget --max-calls 20000 --max-cost 15
"""
_PATIENCE_S = 10.0
"""How long it is waited until the run has taken up what is asked."""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `ctl`."""
    parser.add_argument("run", metavar="RUN", help="a run that goes on (see caiflow show --help)")
    parser.add_argument(
        "what", metavar="WHAT", nargs="?", choices=("pause", "resume", "concurrency", "budget"),
        help="pause: no step begins, no call leaves, trainings rest; resume; concurrency N; budget with its options",
    )  # fmt: skip
    parser.add_argument("number", metavar="N", nargs="?", type=positive, help="with concurrency: most calls of a model at once")
    parser.add_argument("--max-calls", metavar="N", type=positive, help="with budget: as in the model's entry")
    parser.add_argument("--max-tokens-total", metavar="N", type=positive, help="with budget: as in the model's entry")
    parser.add_argument("--max-cost", metavar="X", type=_cost, help="with budget: as in the model's entry")
    parser.add_argument("--model", metavar="NAME", help="the model that is meant (default: all of the spec)")
    parser.add_argument("--json", action="store_true", help="print what is asked of the run as JSON")


def _cost(text: str) -> float:
    with suppress(ValueError):
        if 0 < (cost := float(text)) < math.inf:
            return cost
    raise ArgumentTypeError(f"{text!r} is no amount of money above 0")


def execute(args: Namespace) -> int:
    """Ask it of the run, wait until that is taken up, and print what holds; 1 if the run didn't take it up."""
    from caiflow.engine.store.controls import Controls, read_controls, write_controls
    from caiflow.engine.store.journal import read_run

    run_dir = named_run(args.run)
    if args.what is None:
        return _print(run_dir, read_controls(run_dir), taken=_taken(run_dir, read_controls(run_dir)), as_json=args.json)
    if (status := read_run(run_dir)["status"]) != "running":
        raise CaiflowError(f"{args.run}: nothing can be asked of it, it is {status}", "begin it again with `caiflow run`")
    before = read_controls(run_dir)
    paused = {"pause": True, "resume": False}.get(args.what, before.paused)
    asked = Controls(paused, {**before.models, **_limits(run_dir, args, before)})
    write_controls(run_dir, asked)
    until = time.monotonic() + _PATIENCE_S
    while not (taken := _taken(run_dir, asked)) and time.monotonic() < until:
        time.sleep(0.1)
    return _print(run_dir, asked, taken=taken, as_json=args.json)


def _limits(run_dir: Path, args: Namespace, before: Controls) -> dict[str, dict[str, float]]:
    """Return by model what holds after what is asked.

    Raises:
        SpecError: the words of the command don't go together, or there is no such model.
    """
    budget = {name: getattr(args, name) for name in ("max_calls", "max_tokens_total", "max_cost")}
    new = {name: float(value) for name, value in budget.items() if value is not None}
    if args.what == "concurrency" and args.number:
        new["concurrency"] = float(args.number)
    wanted = {"concurrency": {"concurrency"}, "budget": {*budget}}.get(args.what, set())
    if (wanted and not new) or not new.keys() <= wanted or (args.number and args.what != "concurrency"):
        raise SpecError(f"caiflow ctl: what is meant by {args.what!r} with these?", "see caiflow ctl --help")
    models = [one_of(args.model, _models(run_dir), "models")] if args.model else _models(run_dir)
    return {name: {**before.models.get(name, {}), **new} for name in models} if new else {}


def _models(run_dir: Path) -> list[str]:
    import yaml

    return list((yaml.safe_load((run_dir / "spec.yaml").read_text(encoding="utf-8")) or {}).get("models") or {})


def _taken(run_dir: Path, asked: Controls) -> bool:
    from caiflow.engine.store.journal import read_run

    nothing: dict[str, Any] = {"paused": False, "models": {}}
    return bool(read_run(run_dir).get("control", nothing) == asked.as_json())


def _print(run_dir: Path, asked: Controls, *, taken: bool, as_json: bool) -> int:
    if as_json:
        print_json("ctl", {"run": str(run_dir.absolute()), **asked.as_json(), "taken": taken})
    else:
        say(asked.told() + ("" if taken else " (asked; the run hasn't taken it up yet)"))
    return int(not taken)
