"""What the checks of a spec look at, and where they put what they find.

Holds the tree and what of it could be parsed, so that one wrong step hides nothing that is wrong in another. Checks nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine import registry
from caiflow.engine.errors import SpecError, finding
from caiflow.engine.field_marks import Mark, marks_as_written
from caiflow.engine.operator import Operator
from caiflow.engine.spec.grammar import ModelEntry, Step
from caiflow.engine.spec.layers import Problems
from caiflow.engine.spec.reach import Reach
from caiflow.engine.yaml.tree import Node, Path_


class Checked(NamedTuple):
    """What the checks look at: the tree, and the parts of it that could be parsed."""

    tree: Node
    base_dir: Path
    seed: int
    models: Mapping[str, ModelEntry]
    steps: Mapping[str, Step]
    problems: Problems
    remarks: Problems
    reach: Reach

    def node(self, step: str, path: Path_ = ()) -> Node:
        """Return the node of a step, or the nearest to a path in it."""
        return self.tree.nearest(("steps", step, *path))

    def names(self, key: str) -> Collection[str]:
        """Return the names under `steps` or `models`, of entries that couldn't be parsed too."""
        section = self.tree.child(key)
        return section.value.keys() if section is not None and isinstance(section.value, dict) else ()

    def operator_type(self, step: str) -> type[Operator[Any]] | None:
        """Return the operator of a step, or None where it names none."""
        op = self.node(step).child("op")
        known = op is not None and isinstance(op.value, str) and registry.exists(op.value)
        return registry.operator(op.value) if op is not None and known else None

    def marks(self, step: str, kind: str) -> Iterator[Mark]:
        """Yield the marked values of a step; where it couldn't be parsed, those of the fields that can be read all the same."""
        operator = self.operator_type(step)
        if step in self.steps:
            yield from self.steps[step].marks(kind)
        elif operator is not None:
            yield from marks_as_written(operator.params_type, self.node(step).plain(), kind)

    def report(self, step: str, path: Path_, message: str, hint: str = "", *, key: bool = False) -> None:
        """Add a finding about a step, at the value at `path`, or at its key."""
        node = self.node(step, path)
        self.problems.at(node.key if key or not path else node.at, ("steps", step, *path), message, hint)

    def remark(self, step: str, path: Path_, message: str, hint: str = "") -> None:
        """Add what is worth knowing about a step, though nothing is wrong."""
        self.remarks.at(self.node(step, path).at, ("steps", step, *path), message, hint)

    def report_raised(self, step: str, error: Exception) -> None:
        """Add what an operator raised about a step: its own findings, or what it says."""
        if isinstance(error, SpecError) and error.problems:
            self.problems.extend(error.problems)
        else:
            self.report(step, *finding(error))

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Return the steps that each parsed step names, of those that were parsed."""
        return {
            name: tuple(dict.fromkeys(ref.name for ref in step.references() if ref.name in self.steps))
            for name, step in self.steps.items()
        }
