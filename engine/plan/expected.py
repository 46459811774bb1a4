"""Rows and calls of steps whose inputs aren't made yet, as far as sources and operators tell: exact, or at most so many.

Reads local sources to count them, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from caiflow.engine.operator import Expected, RowOperator

if TYPE_CHECKING:
    from caiflow.engine.plan.components import Resolver


class Estimate(NamedTuple):
    """What a step has to do: rows to go through (to make, where it reads no single input), and model calls."""

    rows: int
    calls: int
    at_most: bool


def estimates(resolver: Resolver, made: Mapping[str, int]) -> dict[str, Estimate]:
    """Return what the steps have to do of which that can be told; `made` has the rows of those that are done."""
    known: dict[str, Expected] = {}
    found: dict[str, Estimate] = {}
    for step in resolver.order:
        operator = resolver.spec.operators[step.name]
        inputs = {ref.name: known[ref.name] for ref in step.references() if ref.kind == "rows" and ref.name in known}
        expected = operator.expects(inputs) if step.name not in made or inputs else None
        if step.name in made:
            known[step.name] = Expected(made[step.name], True, expected.answers if expected else 1)
            continue
        if expected is not None:
            known[step.name] = expected
        given = inputs.get(step.input) if isinstance(operator, RowOperator) else expected
        if given is not None:
            asked = operator.calls_expected(given) if isinstance(operator, RowOperator) and hasattr(step.params, "model") else 0
            found[step.name] = Estimate(given.rows, asked, not given.exact)
    return found
