"""Which columns and rows flow where: a column that a step needs must come from upstream, and rows to measure on from elsewhere.

Asks each operator, in the order of the graph, what it needs and leaves. Where that isn't known, any column may be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from caiflow.engine.errors import CaiflowError, suggest
from caiflow.engine.field_marks import Mark
from caiflow.engine.operator import Operator, Params, Reference
from caiflow.engine.rows.columns import Columns
from caiflow.engine.spec import graph
from caiflow.engine.spec.findings import Checked
from caiflow.engine.spec.grammar import Step


def check_columns(checked: Checked, operators: Mapping[str, Operator[Any]], broken: set[str]) -> Mapping[str, Columns]:
    """Follow the columns through the graph and return each step's; a step that can't be followed has unknown ones."""
    columns: dict[str, Columns] = {name: Columns(open=True) for name in checked.names("steps")}
    needs = checked.needs()
    usable = {name: found for name, found in needs.items() if name in operators and name not in broken}
    try:
        order = graph.order(usable)
    except ValueError:
        return columns  # the cycle is reported already
    for name in order:
        refs = [ref for ref in checked.steps[name].references() if ref.kind == "rows"]
        inputs = inputs_of(checked.steps[name], columns)
        try:
            if not any(list(_missing_columns(checked, name, operators, refs, inputs))):
                for wrong in operators[name].check_columns(inputs):
                    checked.report(name, *wrong)
                columns[name] = operators[name].columns(inputs)
        except (ValueError, OSError, CaiflowError) as error:
            checked.report_raised(name, error)
    return columns


def inputs_of(step: Step, columns: Mapping[str, Columns]) -> dict[str, Columns]:
    """Return the columns of the steps whose rows a step reads."""
    return {ref.name: columns.get(ref.name, Columns(open=True)) for ref in step.references() if ref.kind == "rows"}


def _missing_columns(
    checked: Checked, name: str, operators: Mapping[str, Operator[Any]], refs: list[Reference], inputs: Mapping[str, Columns]
) -> Iterator[bool]:
    """Report columns that the step needs and an input lacks; yield True for each."""
    telling = checked.steps[name].marks("x-column", "x-expression")
    named = [mark for mark in telling if checked.tree.get("steps", name, *mark.path) is not None]
    for source, wanted in operators[name].needs().items():
        known = inputs.get(source, Columns(open=True))
        for column in wanted:
            options = column.split("|")
            if any(option in known for option in options):
                continue
            yield True
            mark = next((mark for mark in named if any(_names(mark, option) for option in options)), None)
            place = mark or next((ref for ref in refs if ref.name == source), None)
            path, key = (place.path, place.key) if place else ((), True)
            message = f"`{source}` has no column " + " or ".join(f"`{option}`" for option in options)
            hints = [
                _column_hint(mark, options, known),
                _line_hint(operators.get(source), options) or _pair_hint(options, known),
            ]
            hint = "; ".join(filter(None, hints))
            checked.report(name, path, message, hint, key=key)


def _names(mark: Mark, column: str) -> bool:
    """Return whether a text of the spec is the column's name, or an expression that has it."""
    return mark.value == column or (mark.kind == "x-expression" and column in re.findall(r"\w+", mark.value))


def _column_hint(mark: Mark | None, options: list[str], known: Columns) -> str:
    columns = sorted(known.types)
    return suggest(options[0], columns, "columns") if mark else f"its columns: {', '.join(columns) or 'none'}"


@runtime_checkable
class Nameable(Protocol):
    """An operator that can say how its rows get a column which they lack."""

    def line_for(self, column: str) -> str:
        """Return the line to write in its step; empty where there is none."""


def _line_hint(source: Operator[Any] | None, options: list[str]) -> str:
    found = next(filter(None, map(source.line_for, options)), "") if isinstance(source, Nameable) else ""
    return found and f"add to that step `{found}`"


def _pair_hint(options: list[str], known: Columns) -> str:
    """Return how rows with a revision become pairs; empty where something else is lacking."""
    if not {"chosen", "rejected"}.isdisjoint(options) and {"revision", "response"} <= known.types.keys():
        return "an `op: map` before it makes pairs by `rename: {revision: chosen, response: rejected}`"
    return ""


@runtime_checkable
class Drawn(Protocol):
    """Parameters of a step whose rows come from outside, which can say whether another step's may be the same."""

    def may_share_rows(self, other: Params) -> bool:
        """Return whether a row may be in both; never where a division keeps them apart."""


def remark_overlaps(checked: Checked) -> None:
    """Remark each step that measures a trained model on rows from where its training had some."""
    for step in checked.steps.values():
        kind = step.operator_type().kind
        for ref in step.references():
            if ref.kind == "rows" and (kind == "metrics" or ref.path == ("eval_input",)):
                _remark_overlap(checked, step, ref)


def _remark_overlap(checked: Checked, step: Step, measured: Reference) -> None:
    own = [ref.name for ref in step.references() if ref.path == ("input",)]
    learnt = sorted(_taught(checked, step) | (_sources(checked, own) if measured.path == ("eval_input",) else set()))
    for source in sorted(_sources(checked, [measured.name])):
        shared = next((other for other in learnt if _share(checked, source, other)), None)
        if shared is not None:
            rows = f"`{source}`" if shared == source else f"`{source}` (from where `{shared}` is too)"
            told = f"`{step.name}` measures on rows of {rows}, on which its model may be trained"
            checked.remark(step.name, measured.path, told, "load the two sides by one `split`, or take other rows")
            return


def _share(checked: Checked, one: str, other: str) -> bool:
    params = checked.steps[one].params
    return one == other or (isinstance(params, Drawn) and params.may_share_rows(checked.steps[other].params))


def _taught(checked: Checked, step: Step) -> set[str]:
    """Return the sources of all rows that the models which a step names were trained on, whatever they were before."""
    models = _reached(checked, [step.name], "model") - {step.name}
    inputs = [ref.name for name in models for ref in checked.steps[name].references() if ref.path == ("input",)]
    return _sources(checked, inputs)


def _sources(checked: Checked, names: Iterable[str]) -> set[str]:
    """Return the steps that the rows of some steps come from in the end."""
    reached = _reached(checked, names, "rows")
    return {name for name in reached if not any(_goes_on(ref, "rows") for ref in checked.steps[name].references())}


def _reached(checked: Checked, names: Iterable[str], kind: str) -> set[str]:
    """Return these steps, and all that they name as rows or as models, directly or over others."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in checked.steps and name not in found:
            found.add(name)
            todo += [ref.name for ref in checked.steps[name].references() if _goes_on(ref, kind)]
    return found


def _goes_on(ref: Reference, kind: str) -> bool:
    """Return whether what a reference names becomes part of what the step makes; rows that are held out don't."""
    return ref.kind == kind and (kind == "model" or ref.path[0] in ("input", "inputs"))
