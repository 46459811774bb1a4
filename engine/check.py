"""The checks that a schema can't make: names, kinds, cycles, columns, files, constitutions.

Each adds its findings to one list and goes on, so that a user sees all of them at once. Reads no data beyond what an operator's
own `columns()` and `check()` read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caiflow.engine import graph, registry
from caiflow.engine.errors import CaiflowError, SpecError
from caiflow.engine.language import ModelEntry, Step
from caiflow.engine.marks import Mark, marks, marks_as_written
from caiflow.engine.names import suggest
from caiflow.engine.operator import Columns, Operator, Reference, StepContext
from caiflow.engine.overlay import Problems
from caiflow.engine.yaml_source import Node, Path_

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SCHEME = re.compile(r"[a-z][a-z0-9]+:")
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst", ".txt", ".yaml", ".yml", ".jinja")
MANY_PROBLEMS = 100
"""Findings after which no more names are compared, which takes time."""
_OUTPUT = {"rows": "rows", "model": "a model", "metrics": "figures"}


@dataclass(slots=True)
class Checked:
    """What the checks look at: the tree, and the parts of it that could be parsed."""

    tree: Node
    base_dir: Path
    seed: int
    models: Mapping[str, ModelEntry]
    steps: Mapping[str, Step]
    problems: Problems

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
            yield from marks(self.steps[step].params, kind)
        elif operator is not None:
            yield from marks_as_written(operator.params_type, self.node(step).plain(), kind)

    def report(self, step: str, path: Path_, message: str, hint: str = "", *, key: bool = False) -> None:
        """Add a finding about a step, at the value at `path`, or at its key."""
        node = self.node(step, path)
        self.problems.at(node.key if key or not path else node.at, ("steps", step, *path), message, hint)


def check(checked: Checked) -> None:
    """Add everything wrong with the parts taken together to the list of problems."""
    _check_names(checked)
    broken = _check_references(checked)
    broken |= _check_cycles(checked)
    _check_models(checked)
    _check_files(checked)
    operators = _build_operators(checked)
    _check_columns(checked, operators, broken)


def _check_names(checked: Checked) -> None:
    for name in checked.names("models"):
        if name in checked.names("steps"):
            place = checked.node(name).key
            checked.problems.at(place, ("steps", name), f"`{name}` is also the name of a model", "rename the step or the model")


def _check_references(checked: Checked) -> set[str]:
    """Return the steps with a reference that leads nowhere or to the wrong kind."""
    broken: set[str] = set()
    for name in checked.names("steps"):
        for mark in checked.marks(name, "x-ref"):
            wrong = _wrong_reference(checked, name, mark)
            if wrong:
                broken.add(name)
                checked.report(name, mark.path, *wrong, key=mark.key)
    return broken


def _wrong_reference(checked: Checked, step: str, mark: Mark) -> tuple[str, str] | None:
    steps, models = checked.names("steps"), checked.names("models")
    if mark.value in steps and mark.value in models:
        return None  # reported already
    if mark.value not in steps and mark.value not in models:
        what = "model" if mark.meaning == "model" else "step"
        return f"unknown {what} `{mark.value}`", _fitting(checked, step, mark, mark.value)
    found = "model" if mark.value in models else _kind(checked, mark.value)
    if found is not None and found != mark.meaning:
        field = next((str(part) for part in reversed(mark.path[: -1 if mark.key else None]) if isinstance(part, str)), "input")
        message = f"`{mark.value}` is {_OUTPUT[found]}, but `{field}` takes {_OUTPUT[mark.meaning]}"
        return message, _fitting(checked, step, mark, "")
    return None


def _fitting(checked: Checked, step: str, mark: Mark, name: str) -> str:
    """Return a hint at what a reference could name, the nearest to `name` first; none after many findings."""
    if len(checked.problems) > MANY_PROBLEMS:
        return ""
    fitting = [*checked.names("models")] if mark.meaning == "model" else []
    others = (other for other in checked.names("steps") if other not in (step, mark.value))
    fitting += [other for other in others if _kind(checked, other) in (mark.meaning, None)]
    return suggest(name, fitting, "models" if mark.meaning == "model" else "steps with rows")


def _kind(checked: Checked, name: str) -> str | None:
    """Return what a step's output is, or None where its operator isn't known."""
    operator = checked.operator_type(name)
    return operator.kind if operator else None


def _check_cycles(checked: Checked) -> set[str]:
    """Return the steps in a cycle."""
    needs = {
        name: tuple(dict.fromkeys(ref.name for ref in step.references() if ref.name in checked.steps))
        for name, step in checked.steps.items()
        if name not in checked.names("models")
    }
    found = graph.cycles(needs)
    for cycle in found:
        # Report at the reference that closes the circle, in the step that comes first in the file.
        first = min(cycle[:-1], key=list(checked.steps).index)
        start = cycle.index(first)
        turned = [*cycle[start:-1], *cycle[:start], first]
        ref = next(ref for ref in checked.steps[first].references() if ref.name == turned[1])
        checked.report(
            first, ref.path, "the steps need each other: " + " -> ".join(turned), "cut one of these edges", key=ref.key
        )
    return {name for cycle in found for name in cycle}


def _check_models(checked: Checked) -> None:
    for name, entry in checked.models.items():
        path = ("models", name)
        remote = entry.base_url is not None or entry.source.startswith(("http://", "https://"))
        node = checked.tree.nearest(path)
        if entry.engine == "openai" and not remote:
            checked.problems.at(node.key, path, f"model `{name}` has no server", "add `base_url: http://HOST:PORT/v1`")
        elif remote and entry.engine in ("transformers", "vllm"):
            at = checked.tree.nearest((*path, "engine")).at
            checked.problems.at(at, (*path, "engine"), f"a served model can't run on {entry.engine}", "write `engine: openai`")


def _check_files(checked: Checked) -> None:
    for name, entry in checked.models.items():
        for mark in marks(entry, "x-path"):
            _check_file(checked, ("models", name), mark)
    for name in checked.names("steps"):
        for mark in checked.marks(name, "x-path"):
            _check_file(checked, ("steps", name), mark)


def _check_file(checked: Checked, owner: Path_, mark: Mark) -> None:
    if mark.meaning != "file" and _SCHEME.match(mark.value):
        return  # a server, or a bundled thing such as tiny:red_team, which its operator checks
    path = Path(mark.value).expanduser()
    full = checked.base_dir / path
    if full.exists() or (mark.meaning != "file" and _may_be_hub_id(mark.value)):
        return
    if any(char in mark.value for char in "*?[") and any(full.parent.glob(full.name)):
        return
    at = checked.tree.nearest((*owner, *mark.path)).at
    where = full.parent if full.parent.is_dir() else None
    near = [entry.name for entry in sorted(where.iterdir())[:500]] if where else []
    hint = suggest(path.name, near, "files there") if near else f"there is no folder {full.parent}"
    if hint.startswith("did you mean") and str(path.parent) != ".":
        hint = f"did you mean `{path.parent / hint.split('`')[1]}`?"
    checked.problems.at(at, (*owner, *mark.path), f"no such file: {mark.value}", hint)


def _may_be_hub_id(value: str) -> bool:
    return HUB_ID.fullmatch(value) is not None and not value.endswith(DATA_SUFFIXES)


def _build_operators(checked: Checked) -> dict[str, Operator[Any]]:
    """Return the operators that can be made; what stops the others, and what they find wrong, is reported."""
    constitutions = _Constitutions(checked)
    made: dict[str, Operator[Any]] = {}
    for name, step in checked.steps.items():
        kind = step.operator_type()
        raw, path = constitutions.of(step)
        if raw is None and kind.uses_constitution:
            checked.report(name, (), f"`{step.op}` needs a constitution", "add `constitution: harmless` at the top of the spec")
            continue
        loaded = constitutions.load(raw, path) if raw is not None else None
        if loaded is None and raw is not None:
            continue
        try:
            operator = kind(step.params, StepContext(checked.seed, checked.base_dir, loaded))
            for found in operator.check():
                checked.report(name, *found)
            made[name] = operator
        except (ValueError, CaiflowError, OSError) as error:
            _report_raised(checked, name, error)
    return made


class _Constitutions:
    """The constitutions of a spec, each read once and reported once."""

    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self.loaded: dict[Path_, Any] = {}

    def of(self, step: Step) -> tuple[Any, Path_]:
        """Return the constitution that holds for a step, as written, and where it is written."""
        if step.constitution is not None:
            return step.constitution, ("steps", step.name, "constitution")
        node = self.checked.tree.child("constitution")
        return (node.plain() if node else None), ("constitution",)

    def load(self, raw: Any, path: Path_) -> Any:
        """Return the constitution, or None where it is wrong."""
        if path not in self.loaded:
            from caiflow.engine.constitution import load_constitution

            self.loaded[path] = None
            at = self.checked.tree.nearest(path).at
            try:
                self.loaded[path] = load_constitution(raw, self.checked.base_dir)
            except SpecError as error:
                self.checked.problems.extend(problem for problem in error.problems if problem.file)
                for problem in error.problems:
                    if not problem.file:
                        self.checked.problems.at(at, path, problem.message, problem.hint)
                if not error.problems:
                    self.checked.problems.at(at, path, *_split(str(error)))
            except (ValueError, OSError, CaiflowError) as error:
                self.checked.problems.at(at, path, *_split(str(error)))
        return self.loaded[path]


def _check_columns(checked: Checked, operators: Mapping[str, Operator[Any]], broken: set[str]) -> None:
    """Follow the columns through the graph; a step that can't be followed has unknown columns."""
    columns: dict[str, Columns] = {name: Columns(open=True) for name in checked.names("steps")}
    needs = {
        name: tuple(ref.name for ref in step.references() if ref.name in checked.steps) for name, step in checked.steps.items()
    }
    usable = {name: found for name, found in needs.items() if name in operators and name not in broken}
    try:
        order = graph.order(usable)
    except ValueError:
        return  # the cycle is reported already
    for name in order:
        refs = [ref for ref in checked.steps[name].references() if ref.kind == "rows"]
        inputs = {ref.name: columns.get(ref.name, Columns(open=True)) for ref in refs}
        try:
            if not any(list(_missing_columns(checked, name, operators[name], refs, inputs))):
                columns[name] = operators[name].columns(inputs)
        except (ValueError, OSError, CaiflowError) as error:
            _report_raised(checked, name, error)


def _missing_columns(
    checked: Checked, name: str, operator: Operator[Any], refs: list[Reference], inputs: Mapping[str, Columns]
) -> Iterator[bool]:
    """Report columns that the step needs and an input lacks; yield True for each."""
    named = [mark for mark in marks(operator.params, "x-column") if checked.tree.get("steps", name, *mark.path) is not None]
    for source, wanted in operator.needs().items():
        known = inputs.get(source, Columns(open=True))
        for column in wanted:
            options = column.split("|")
            if any(option in known for option in options):
                continue
            yield True
            mark = next((mark for mark in named if mark.value in options), None)
            ref = next(ref for ref in refs if ref.name == source)
            path, key = (mark.path, mark.key) if mark else (ref.path, ref.key)
            message = f"`{source}` has no column " + " or ".join(f"`{option}`" for option in options)
            checked.report(name, path, message, _column_hint(mark, options, known), key=key)


def _column_hint(mark: Mark | None, options: list[str], known: Columns) -> str:
    columns = sorted(known.types)
    return suggest(options[0], columns, "columns") if mark else f"its columns: {', '.join(columns) or 'none'}"


def _report_raised(checked: Checked, name: str, error: Exception) -> None:
    if isinstance(error, SpecError) and error.problems:
        checked.problems.extend(error.problems)
        return
    checked.report(name, (), *_split(str(error)))


def _split(text: str) -> tuple[str, str]:
    message, _, hint = text.partition("; ")
    return message, hint
