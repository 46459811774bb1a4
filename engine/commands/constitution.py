"""`caiflow constitution`: show one, convert one from a foreign format, or check one."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.commands.parser import print_json
from caiflow.engine.display.terminal import escaped, say
from caiflow.engine.errors import Problem, SpecError

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import Constitution

EXAMPLES = """\
  caiflow constitution show                      # the bundled ones
  caiflow constitution show harmless
  caiflow constitution show harmless --id p03 --json
  caiflow constitution convert CritiqueRevisionInstructions.json > mine.yaml
  caiflow constitution check mine.yaml
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `constitution`."""
    parser.add_argument("action", choices=("show", "convert", "check"), help="what to do")
    parser.add_argument(
        "source", metavar="NAME|FILE", nargs="*", help="a bundled name or a file; several are merged, or checked one by one"
    )
    parser.add_argument("--id", metavar="ID", help="show: only the principles whose id begins so")
    parser.add_argument("--json", action="store_true", help="show: print JSON")


def execute(args: Namespace) -> int:
    """Carry out the action."""
    from caiflow.engine.constitution.load import bundled, convert, dump, load_constitution

    if not args.source:
        if args.action != "show":
            say(f"caiflow constitution {args.action}: name a file or a bundled constitution", file=sys.stderr)
            return 2
        say("\n".join(f"{name:<16} {load_constitution(name).description}" for name in bundled()))
        return 0
    if args.action == "check":
        return _check(args.source)
    alone = args.action == "convert" and len(args.source) == 1
    parts = [_load(name, convert if alone else load_constitution) for name in args.source]
    constitution = parts[0] if len(parts) == 1 else load_constitution(args.source, Path())
    if args.action == "convert":
        text = dump(constitution)
        say(text if text == escaped(text) else dump(constitution, ascii_only=True), end="")
        return 0
    return _show(constitution, args)


def _load(name: str, load: Callable[[str, Path], Constitution]) -> Constitution:
    """Return a constitution; problems begin with the name as it was given."""
    try:
        return load(name, Path())
    except SpecError as error:
        raise SpecError(tuple(problem._replace(file=name) for problem in error.problems)) from None


def _check(names: Sequence[str]) -> int:
    """Check each on its own, since alternatives may well have equal ids; raise what is wrong with any after the last."""
    from caiflow.engine.constitution.load import findings, load_constitution, usable

    problems: list[Problem] = []
    for name in names:
        try:
            constitution = _load(name, load_constitution)
        except SpecError as error:
            problems += error.problems
            continue
        if not constitution.principles:
            problems.append(_without_principles(name, constitution))
            continue
        examples = f"{len(constitution.few_shot_critique)} + {len(constitution.few_shot_judge)} few-shot examples"
        say(f"{name}: ok, {len(constitution.principles)} principles, {examples}")
        for line in usable(constitution):
            say(f"  {line}")
        for finding in findings(constitution):
            say(f"  note: {finding}")
    if problems:
        raise SpecError(tuple(problems))
    return 0


def _without_principles(name: str, constitution: Constitution) -> Problem:
    """Return what is wrong with a file of examples alone, where it is taken for a whole constitution."""
    examples = len(constitution.few_shot_critique) + len(constitution.few_shot_judge)
    hint = "list it under `constitution:` beside a file that has some" if examples else "write some under `principles:`"
    return Problem(name, 1, 1, "", f"it has no principles, and {examples} few-shot examples", hint)


def _show(constitution: Constitution, args: Namespace) -> int:
    chosen = [p for p in constitution.principles if args.id is None or p.id.startswith(args.id)]
    if args.json:
        shots = [example._asdict() for example in constitution.few_shot_critique]
        shots += [example._asdict() for example in constitution.few_shot_judge]
        principles = [principle.model_dump(exclude_none=True) for principle in chosen]
        told = {"name": constitution.name, "description": constitution.description, "principles": principles}
        print_json("constitution", {**told, "few_shot": [] if args.id else shots})
        return 0
    from caiflow.engine.commands.tables import row_text
    from caiflow.engine.display.console import Console

    console = Console()
    console.print(f"{constitution.name}: {constitution.description}")
    for principle in chosen:
        console.print(row_text({"uid": principle.id, **principle.model_dump(exclude={"id"}, exclude_none=True)}), end="")
    return 0
