"""What the commands of reference print with `--json`."""

from __future__ import annotations

from typing import Any, Literal

from caiflow.engine.commands.shapes.base import Output, Shape


class Init(Output):
    """`caiflow init --json`."""

    folder: str
    """Where it was written."""
    spec: str
    """The spec to run, in it."""
    files: list[str]
    """What is in it."""


class RecipeShape(Shape):
    """One recipe."""

    name: str
    """By which `run` and `init` know it."""
    description: str
    """What it does."""
    path: str
    """Its file."""


class Specs(Output):
    """`caiflow specs --json`."""

    recipes: list[RecipeShape]
    """The bundled ones."""


class OperatorShape(Shape):
    """One operator."""

    op: str
    """Its name."""
    kind: str
    """What it gives: rows, model or metrics."""
    description: str
    """What it does."""


class Ops(Output):
    """`caiflow ops --json`; `caiflow ops OP --json` is a JSON Schema of its parameters, as `caiflow schema` is of specs."""

    operators: list[OperatorShape]
    """Built-in ones first."""


class ConstitutionOutput(Output):
    """`caiflow constitution show --json`."""

    name: str
    """Its name."""
    description: str
    """What it says of itself."""
    principles: list[dict[str, Any]]
    """`id`, `critique`, `revision`, `judge`, `weight`, `guards`, those that a principle has."""
    few_shot: list[dict[str, Any]]
    """Worked examples; none where `--id` chose principles."""


class FindingShape(Shape):
    """One thing looked at."""

    what: str
    """What it is."""
    verdict: Literal["ok", "note", "skipped", "broken"]
    """`broken` means that runs will fail."""
    detail: str
    """What was found."""
    hint: str
    """What to do, or empty."""


class Doctor(Output):
    """`caiflow doctor --json`: exit code 1 where anything is broken."""

    findings: list[FindingShape]
    """In order."""
