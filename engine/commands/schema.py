"""`caiflow schema`: the JSON Schema of specs, installed plugins included."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from caiflow.engine.commands.parser import print_schema

EXAMPLES = """\
  caiflow schema > caiflow.schema.json
  # then, in the first line of a spec, for completion in editors:
  # yaml-language-server: $schema=caiflow.schema.json
"""


def arguments(parser: ArgumentParser) -> None:
    """Add no argument."""


def execute(_args: Namespace) -> int:
    """Print the schema."""
    from caiflow.engine.spec.schema import spec_schema

    print_schema(spec_schema())
    return 0
