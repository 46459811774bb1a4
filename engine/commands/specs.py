"""`caiflow specs`: the bundled recipes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from caiflow.engine.commands.parser import print_json, recipes
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow specs
  caiflow specs --json
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `specs`."""
    parser.add_argument("--json", action="store_true", help="print the recipes as JSON")


def execute(args: Namespace) -> int:
    """List the recipes with their descriptions."""
    found = [_describe(name, path) for name, path in recipes().items()]
    if args.json:
        print_json("specs", {"recipes": found})
        return 0
    for recipe in found:
        say(f"{recipe['name']:<22} {recipe['description']}")
    say("\ncaiflow init RECIPE DIR copies one; caiflow run RECIPE runs it as it is.")
    return 0


def _describe(name: str, path: Path) -> dict[str, str]:
    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"name": name, "description": " ".join(str(raw.get("description", "")).split()), "path": str(path)}
