"""What the checks of a spec look at, and where they put what they find.

Holds the tree and what of it could be parsed, so that one wrong step hides nothing that is wrong in another; and the
constitutions that are named, read once. Checks nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine import registry
from caiflow.engine.errors import CaiflowError, SpecError, finding, suggest
from caiflow.engine.field_marks import Mark, marks_as_written
from caiflow.engine.operator import Operator, StepContext
from caiflow.engine.spec.grammar import ModelEntry, Step
from caiflow.engine.spec.layers import Problems, split_path
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


class Constitutions:
    """The constitutions of a spec, each read once and reported once."""

    def __init__(self, checked: Checked, refused: set[Path_]) -> None:
        self.checked = checked
        self.refused = refused
        self.loaded: dict[Path_, Any] = {}

    def of(self, step: Step) -> tuple[Any, Path_]:
        """Return the constitution that holds for a step, as written, and where it is written."""
        if step.constitution is not None:
            return step.constitution, ("steps", step.name, "constitution")
        node = self.checked.tree.child("constitution")
        return (node.plain() if node else None), ("constitution",)

    def of_step(self, step: Step, raw: Any, path: Path_) -> Any:
        """Return the constitution written for a step, or one as large as that which another step makes; None if it's wrong."""
        name = step.principles_from
        if not name:
            return self.load(raw, path)
        found = self._promised(name)
        if found is None and (name in self.checked.steps or name not in self.checked.names("steps")):
            told = f"`{name}` makes no constitution" if name in self.checked.steps else f"unknown step `{name}`"
            others = [other for other in self.checked.steps if other != step.name and self._promised(other)]
            self.checked.report(step.name, ("constitution", "step"), told, suggest(name, others, "steps that make one"))
        return found

    def _promised(self, name: str) -> Any:
        step = self.checked.steps.get(name)
        return step and step.operator_type()(step.params, StepContext(self.checked.seed, self.checked.base_dir)).promises()

    def load(self, raw: Any, path: Path_) -> Any:
        """Return the constitution, or None where it is wrong or may not be read."""
        if any(place[: len(path)] == path for place in self.refused):
            return None
        if path not in self.loaded:
            from caiflow.engine.constitution.load import load_constitution

            self.loaded[path] = None
            at = self.checked.tree.nearest(path).at
            try:
                self.loaded[path] = load_constitution(raw, self.checked.base_dir)
            except SpecError as error:
                self.checked.problems.extend(problem for problem in error.problems if problem.file)
                for problem in error.problems:
                    if not problem.file:
                        below = (*path, *split_path(problem.path)) if problem.path else path
                        place = self.checked.tree.nearest(below).key if problem.path else at
                        self.checked.problems.at(place, below, problem.message, problem.hint)
                if not error.problems:
                    self.checked.problems.at(at, *finding(error, path))
            except (ValueError, OSError, CaiflowError) as error:
                self.checked.problems.at(at, *finding(error, path))
        return self.loaded[path]
