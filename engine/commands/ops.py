"""`caiflow ops`: the operators, or the parameters of one, or of an entry of `models`, with types, defaults and meaning."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any

from caiflow.engine.commands.parser import one_of, print_json, print_schema, recipes
from caiflow.engine.display.terminal import say

EXAMPLES = """\
  caiflow ops
  caiflow ops critique
  caiflow ops models
  caiflow ops dpo --json
"""

MODELS = "models"
WIDE = 110
"""Columns from which on the parameters stand in a table; in a narrower one their meanings would have no room."""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `ops`."""
    parser.add_argument("op", metavar="OP", nargs="?", help="an operator; or `models`, for the fields of a model")
    parser.add_argument("--json", action="store_true", help="print JSON: the names and summaries, or the operator's schema")


def execute(args: Namespace) -> int:
    """List operators, or describe one."""
    from caiflow.engine import registry
    from caiflow.engine.spec import schema

    if args.op is not None:
        name = one_of(args.op, [*registry.names(), MODELS], "operators")
        found = schema.describe_models() if name == MODELS else schema.describe(name)
        print_schema(found) if args.json else _describe(args.op, found)
        return 0
    found = schema.spec_schema()
    summaries = {name: _summary(found["$defs"][f"op:{name}"]) for name in registry.names()}
    if args.json:
        print_json("ops", {"operators": [{"op": name, **summary} for name, summary in summaries.items()]})
        return 0
    for name, summary in summaries.items():
        say(f"{name:<10} {summary['kind']:<8} {summary['description']}")
    say(f"\ncaiflow ops OP lists the parameters of one; caiflow ops {MODELS} those of a model.")
    return 0


def _summary(found: Mapping[str, Any]) -> dict[str, str]:
    return {"kind": found["x-kind"], "description": found.get("description", "").partition("\n\n")[0].replace("\n", " ")}


def _describe(name: str, found: Mapping[str, Any]) -> None:
    from caiflow.engine.commands.tables import parameters_list, parameters_table
    from caiflow.engine.display.console import Console

    console = Console()
    gives = f" -> {found['x-kind']}" if "x-kind" in found else ""
    console.print(f"{name}{gives}\n\n{found.get('description', '')}\n")
    if console.width >= WIDE:
        console.print(parameters_table(found))
    else:
        console.print(*parameters_list(found), sep="\n")
    if example := _example(name, found):
        console.print(f"\nexample{example}")


def _example(op: str, schema: Mapping[str, Any]) -> str:
    """Return how a step of this operator is written: by its own examples, else in a recipe, with its name."""
    import yaml

    if own := schema.get("examples"):
        return ":\n\n" + "\n\n".join(_written({op: step}) for step in own)
    found = recipes()
    for recipe in sorted(found, key=lambda name: name != "quickstart"):
        steps = yaml.safe_load(found[recipe].read_text(encoding="utf-8")).get("steps") or {}
        for name, step in steps.items():
            if step and step.get("op") == op:
                return f", of the recipe {recipe}:\n\n{_written({name: step})}"
    return ""


def _written(step: Mapping[str, Any]) -> str:
    """Return a step as a spec has it."""
    import yaml

    written = yaml.safe_dump(step, default_flow_style=None, sort_keys=False, width=70).rstrip()
    return "\n".join(f"  {line}" for line in written.splitlines())
