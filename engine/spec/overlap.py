"""Evaluating on what was trained on, as far as a spec's sources say so: a remark, since the figures mean less, yet are made.

Follows rows and models through the graph to the steps that read from outside. Reads no row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from caiflow.engine.operator import Params, Reference
from caiflow.engine.spec.findings import Checked
from caiflow.engine.spec.grammar import Step


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
