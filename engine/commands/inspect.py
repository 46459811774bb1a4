"""`caiflow inspect`: what a spec may do, before the first run of one that came from elsewhere."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from caiflow.engine.commands.parser import allowed_by, find_spec, print_json, spec_arguments
from caiflow.engine.display.terminal import say

if TYPE_CHECKING:
    from caiflow.engine.plan.inspection import Inspection

EXAMPLES = """\
  caiflow inspect theirs.yaml                       # opens nothing that the spec names, and asks no server
  caiflow inspect theirs.yaml --profile full
  caiflow inspect theirs.yaml --json | jq -r '.flags[]'   # what still needs your word
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `inspect`."""
    spec_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def execute(args: Namespace) -> int:
    """Print what the spec may do; nothing that it names is opened."""
    from caiflow.engine.plan.inspection import inspection
    from caiflow.engine.spec.load import draft_spec

    path = find_spec(args.spec)
    draft = draft_spec(path, sets=args.sets, profile=args.profile, sample=args.sample, allowed=args.allowed_paths)
    found = inspection(path, draft, allowed_by(args))
    if args.json:
        print_json("inspect", found.to_json())
        return 0
    say(f"{args.spec}: what a run of it may do")
    for title, lines in _sections(found):
        say("\n".join(["", title, *(f"  {line}" for line in lines or ["nothing"])]))
    say(f"\n{_end(found)}")
    return 0


def _sections(found: Inspection) -> Iterator[tuple[str, Sequence[str]]]:
    unseen = [f"without its profiles {', '.join(found.unseen)}: choose one with --profile"] if found.unseen else []
    yield "is written in", [*found.specs, *unseen]
    yield "reads", [_line(read.place, read.value, _led(read.value, read.path), read.why, read.flag) for read in found.reads]
    asks = ((ask.host, f"gets rows of {_and(ask.steps)}", _key(ask.keys), *ask.flags) for ask in found.asks)
    yield "asks servers, whose names are looked up when it runs", [_line(*ask) for ask in asks]
    yield "uses models", [f"{name}: {what}" for name, what in found.models.items()]
    yield "runs code beside caiflow's own", [_line(code.place, code.what, code.flag) for code in found.runs]
    yield "writes", found.writes


def _line(*parts: str) -> str:
    told = (f"NEEDS YOUR WORD: {part}" if part.startswith("--") else part for part in parts)
    return "  ".join(filter(None, told))


def _led(value: str, path: str) -> str:
    return f"-> {path}" if path and path != value else ""


def _key(variables: tuple[str, ...]) -> str:
    return f"and the key in {_and(variables)}" if variables else ""


def _and(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no step"


def _end(found: Inspection) -> str:
    if not found.flags:
        return "nothing of this needs your word"
    return f"to allow all of this for one run, say: {' '.join(found.flags)}"
