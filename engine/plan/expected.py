"""Rows and calls of steps whose inputs aren't made yet, as far as sources and operators tell: exact, or at most so many.

Reads local sources to count them, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from caiflow.engine.operator import Expected, RowlessOperator, RowOperator
from caiflow.engine.store.ledger import ledger_name

if TYPE_CHECKING:
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.spec.grammar import Step


class Estimate(NamedTuple):
    """What a step has to do: rows to go through (None for figures; to make, where it reads no single input), and calls."""

    rows: int | None
    calls: int
    at_most: bool


def estimates(resolver: Resolver, made: Mapping[str, int]) -> dict[str, Estimate]:
    """Return what each step has to do, where that can be told; `made` has the rows of those that are done."""
    known: dict[str, Expected] = {}
    found: dict[str, Estimate] = {}
    for step in resolver.order:
        operator = resolver.spec.operators[step.name]
        inputs = {ref.name: known[ref.name] for ref in step.references() if ref.kind == "rows" and ref.name in known}
        if (cut := resolver.cut_of([step])) is not None and step.input in inputs:
            given = inputs[step.input]
            inputs[step.input] = given._replace(rows=min(given.rows, cut.until.at_most or given.rows), exact=False)
        expected = operator.expects(inputs) if step.name not in made or inputs else None
        if step.name in made:
            known[step.name] = Expected(made[step.name], True, expected.answers if expected else 1)
            continue
        if expected is not None:
            known[step.name] = expected
        if (told := _estimate(resolver, step, inputs, expected)) is not None:
            found[step.name] = told
    return found


def _estimate(resolver: Resolver, step: Step, inputs: Mapping[str, Expected], expected: Expected | None) -> Estimate | None:
    operator = resolver.spec.operators[step.name]
    if isinstance(operator, RowlessOperator):
        calls = operator.calls_expected(inputs)
        return calls and Estimate(None, calls.number, not calls.exact or _asked_before(resolver, step))
    given = inputs.get(step.input) if isinstance(operator, RowOperator) else expected
    if given is None:
        return None
    asked = operator.calls_expected(given) if isinstance(operator, RowOperator) and hasattr(step.params, "model") else 0
    return Estimate(given.rows, asked, not given.exact or (asked > 0 and _asked_before(resolver, step)))


def _asked_before(resolver: Resolver, step: Step) -> bool:
    """Return whether some of a step's calls may be in the ledger already, or two of its models be one."""
    models = dict.fromkeys(ref.name for ref in step.references() if ref.kind == "model")
    known = [source.identity for name in models if (source := resolver.model(name))]
    ledgers = [ledger_name(step.op, identity) for identity in known]
    if len(known) < len(models):
        ledgers.append(f"{step.op}-*")  # a model that isn't made yet may come out as it was before
    records = (resolver.store.ledger_dir.glob(f"{name}/*.seg") for name in ledgers)
    return len({*known}) < len(known) or any(map(any, records))
