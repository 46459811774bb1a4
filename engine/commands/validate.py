"""`caiflow validate`: every problem of every spec, at its file, line and column."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from caiflow.engine.commands.parser import find_spec, print_json, variant_arguments
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import Problem, SpecError

SHOWN = 70
"""Characters shown of a line of a spec."""
EXAMPLES = """\
  caiflow validate cai.yaml
  caiflow validate specs/*.yaml --json
  caiflow validate cai.yaml --profile cluster --set steps.sl_cai.lora.rank=32
  caiflow plan cai.yaml    # also whether trainings learn the tokens that engines sample, which takes tokenizers
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `validate`."""
    parser.add_argument("specs", metavar="SPEC", nargs="+", help="spec files or names of bundled recipes")
    variant_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the problems as JSON")


def execute(args: Namespace) -> int:
    """Check each spec; 2 if any has a problem."""
    found: list[Problem] = []
    for name in args.specs:
        said, problems = _checked(name, args)
        found += problems
        if not args.json:
            shown = with_source if sys.stdout.isatty() else str
            say("\n".join(map(shown, problems)) or said)
    if args.json:
        print_json("validate", {"problems": [problem._asdict() for problem in found]})
    elif len(found) > 1 and sys.stdout.isatty():
        say(f"{len(found)} problems")
    return 2 if found else 0


def with_source(problem: Problem) -> str:
    """Return a problem with its line of the file, as wide as a terminal shows it, and a caret below its place."""
    try:
        line = Path(problem.file).read_text(encoding="utf-8").splitlines()[problem.line - 1]
    except (OSError, ValueError, IndexError):
        return str(problem)  # it isn't in a file, but in an option, say
    start = max(0, problem.col - 1 - SHOWN // 2)
    number = f"{problem.line:>5} | "
    mark = " " * (len(number) + problem.col - 1 - start) + "^"
    return f"{problem}\n{number}{line[start : start + SHOWN]}\n{mark}"


def _checked(name: str, args: Namespace) -> tuple[str, tuple[Problem, ...]]:
    """Return what to say of a spec without a problem, and its problems."""
    from caiflow.engine.spec.layers import profiles_of
    from caiflow.engine.spec.load import load_spec

    try:
        spec = load_spec(find_spec(name), sets=args.sets, profile=args.profile, sample=args.sample, allowed=args.allowed_paths)
    except SpecError as error:
        return "", error.problems or (Problem(name, 1, 1, "", str(error)),)
    chosen = profiles_of(args.profile or "", spec.profiles)
    others = [profile for profile in spec.profiles if profile not in chosen]
    said = f"{name}: ok" + (f", without looking into --profile {' or '.join(others)}" if others else "")
    return "\n".join([said, *(f"remark: {remark}" for remark in spec.remarks)]), ()
