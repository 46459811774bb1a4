"""`caiflow schema`: the JSON Schema of specs, installed plugins included, or that of constitutions."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from caiflow.engine.commands.parser import print_schema

EXAMPLES = """\
  caiflow schema > caiflow.schema.json
  # then, in the first line of a spec, for completion in editors:
  # yaml-language-server: $schema=caiflow.schema.json
  caiflow schema constitution > constitution.schema.json
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `schema`."""
    parser.add_argument(
        "of", metavar="OF", nargs="?", choices=("spec", "constitution"), default="spec", help="spec (default) or constitution"
    )


def execute(args: Namespace) -> int:
    """Print the schema."""
    from caiflow.engine.spec.schema import constitution_schema, spec_schema

    print_schema(constitution_schema() if args.of == "constitution" else spec_schema())
    return 0
