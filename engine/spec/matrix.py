"""`matrix:` carried out: each step that an arm changes, and each that needs one, once per arm; the others stay shared.

`grammar.py` shows how it is written. Works on the tree and the steps parsed from it, so that every copy keeps the places of its
values. Names of copies are `step@arm`, with `+` between the arms of several axes.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from caiflow.engine.errors import nearest, suggest
from caiflow.engine.spec import graph
from caiflow.engine.spec.grammar import Step
from caiflow.engine.spec.layers import Problems, assign, split_path
from caiflow.engine.yaml.tree import Node, Path_

Arm = tuple[tuple[str, str], ...]
"""One arm of each of some axes: ((axis, arm), ...), in the order of the axes."""
MAX_COPIES = 2_000
_WHOLE = "set all of it: `constitution: {source: harmless, without: [ID]}`"


class Change(NamedTuple):
    """One thing an arm sets: the value at `path` below a model, a step, or the spec itself (`owner` empty)."""

    owner: str
    path: Path_
    node: Node


Axes = Mapping[str, Mapping[str, tuple[Change, ...]]]
Parse = Callable[[str, Node, Problems], Step | None]


def expand(tree: Node, steps: Mapping[str, Step], parse_step: Parse, problems: Problems) -> tuple[Node, dict[str, Step]]:
    """Return the tree without its matrix and the steps, both with a copy per arm; findings go to `problems`."""
    axes = _axes(tree, problems)
    plain = tree._replace(value={key: node for key, node in tree.items() if key != "matrix"})
    gathers = any(ref.name.endswith("@*") for step in steps.values() for ref in step.references())
    if not axes and not gathers:
        return plain, dict(steps)
    return _Expansion(plain, steps, axes, parse_step, problems).carry_out()


def _axes(tree: Node, problems: Problems) -> Axes:
    matrix = tree.child("matrix")
    found: dict[str, dict[str, tuple[Change, ...]]] = {}
    for axis, node in matrix.items() if matrix else ():
        found[axis] = {}
        for arm, settings in _arms(axis, node):
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", arm):
                problems.at(
                    settings[0][1].at if settings else node.at,
                    ("matrix", axis),
                    f"`{arm}` can't name an arm",
                    "write the arms as NAME: {STEP.FIELD: value}",
                )
                continue
            if arm in found[axis]:
                said = f"two arms of `{axis}` come out under the name `{arm}`"
                problems.at(
                    settings[0][1].at if settings else node.at, ("matrix", axis), said, "name each: {ARM: {STEP.FIELD: value}}"
                )
                continue
            if isinstance(node.value, tuple) and (other := _alike(found[axis], settings[0][1])):
                said = f"arm `{arm}` of `{axis}` has the value of arm `{other}`"
                problems.at(
                    settings[0][1].at, ("matrix", axis), said, "write it once, or name both: {ARM: {STEP.FIELD: value}}"
                )
                continue
            changes = (_change(tree, key, value, ("matrix", axis, arm), problems) for key, value in settings)
            found[axis][arm] = tuple(change for change in changes if change)
    return {axis: arms for axis, arms in found.items() if arms}


def _alike(arms: Mapping[str, tuple[Change, ...]], value: Node) -> str | None:
    """Return the arm of a list that has the same value, however its numbers are written."""
    wanted = _numbers_alike(value.plain())
    return next((arm for arm, changes in arms.items() if changes and _numbers_alike(changes[0].node.plain()) == wanted), None)


def _numbers_alike(value: Any) -> str:
    """Return a value as text in which 1 and 1.0 are the same, and 1 and true aren't."""
    return json.dumps(json.loads(json.dumps(value, sort_keys=True, default=str), parse_int=float))


def _arms(axis: str, node: Node) -> Iterator[tuple[str, list[tuple[str, Node]]]]:
    if isinstance(node.value, tuple):
        for index, value in enumerate(node.value, 1):
            simple = isinstance(value.value, (str, int, float)) and re.fullmatch(r"[A-Za-z0-9_.-]+", str(value.value))
            yield (str(value.value) if simple else str(index)), [(axis, value._replace(key=node.key))]
    for arm, settings in node.items():
        yield arm, list(settings.items())


def _change(tree: Node, key: str, node: Node, where: Path_, problems: Problems) -> Change | None:
    path = split_path(key.removeprefix("steps."))
    steps = [name for name, _ in (tree.child("steps") or tree).items()]
    models = [name for name, _ in (tree.child("models") or tree._replace(value={})).items()]
    if path == ("constitution",):
        return Change("", path, node)
    if path[0] == "models" and len(path) > 2 and path[1] in models:
        return Change(f"models.{path[1]}", path[2:], node)
    if path[0] in steps and len(path) > 1:
        return Change(str(path[0]), path[1:], node)
    if path[0] in steps:
        problems.at(node.key, (*where, key), f"`{key}` names a step but no field of it", f"write `{key}.FIELD: value`")
    elif path[0] == "models":
        problems.at(node.key, (*where, key), f"`{key}` names no field of a model", suggest(str(path[1:2]), models, "models"))
    elif path[0] == "constitution":
        problems.at(node.key, (*where, key), f"`{key}` names a part of the constitution", _WHOLE)
    elif path == ("seed",):
        problems.at(node.key, (*where, key), "all arms have the seed of the spec", "make a run for each: --set seed=2")
    elif len(path) == 1 and nearest(key, steps) is None:
        shape = "write `STEP.FIELD: [value, ...]`, or `AXIS: {ARM: {STEP.FIELD: value}}`"
        problems.at(node.key, (*where, key), f"`{key}` names no field of a step", shape)
    else:
        problems.at(node.key, (*where, key), f"unknown step `{path[0]}`", suggest(str(path[0]), steps, "steps"))
    return None


class _Expansion:
    """The state of carrying one matrix out."""

    def __init__(self, tree: Node, steps: Mapping[str, Step], axes: Axes, parse_step: Parse, problems: Problems) -> None:
        self.tree = tree
        self.steps = steps
        self.axes = axes
        self.parse_step = parse_step
        self.problems = problems
        self.model_axes = {name: self._touching(f"models.{name}") for name, _ in _section(tree, "models")}
        self.step_axes: dict[str, tuple[str, ...]] = {}

    def carry_out(self) -> tuple[Node, dict[str, Step]]:
        """Return the tree and the steps, with the copies in the places of the originals."""
        touching = {name: self._touching(name) for name in self.steps}
        if self._too_many([*touching.values(), *self.model_axes.values()]):
            return self.tree, dict(self.steps)
        variants = {name: list(self._variants(name, step)) for name, step in self.steps.items()}
        needs = {name: tuple(ref.name for step in found for ref in step.references()) for name, found in variants.items()}
        try:
            names = graph.order({name: tuple(need for need in found if need in needs) for name, found in needs.items()})
        except ValueError:
            return self.tree, dict(self.steps)  # the cycle is reported by the checks of the graph
        for name in names:
            given = {axis for need in needs[name] for axis in (*self.step_axes.get(need, ()), *self.model_axes.get(need, ()))}
            own = self._own(name)
            self.step_axes[name] = tuple(axis for axis in self.axes if axis in given or axis in own)
        self._report_idle_axes()
        if self._too_many(self.step_axes.values()):
            return self.tree, dict(self.steps)
        copies = {name: self._arms_of(self.step_axes.get(name, ())) for name, _ in _section(self.tree, "steps")}
        models = self._copied_models()
        nodes, parsed = self._copied_steps(copies)
        tree = assign(self.tree, ("steps",), Node(nodes, *_place(self.tree, "steps")))
        return (assign(tree, ("models",), Node(models, *_place(self.tree, "models"))) if models else tree), parsed

    def _too_many(self, copied: Iterable[tuple[str, ...]]) -> bool:
        """Report a matrix that makes more copies than anybody means, before any is made; each tuple is one thing's axes."""
        number = sum(math.prod(len(self.axes[axis]) for axis in axes) for axes in copied)
        if number > MAX_COPIES:
            said = f"the matrix makes {number:,} copies of steps and models, more than {MAX_COPIES:,}"
            first = next(change for arms in self.axes.values() for changes in arms.values() for change in changes)
            self.problems.at(first.node.key, "matrix", said, "use fewer arms")
        return number > MAX_COPIES

    def _touching(self, owner: str) -> tuple[str, ...]:
        return tuple(
            axis for axis, arms in self.axes.items() if any(c.owner == owner for changes in arms.values() for c in changes)
        )

    def _own(self, name: str) -> tuple[str, ...]:
        """Return the axes that change the step itself, by a field or by the spec's constitution."""
        step = self.steps[name]
        shared = step.constitution is None and step.goes_by_principles
        return (*self._touching(name), *(self._touching("") if shared else ()))

    def _variants(self, name: str, step: Step) -> Iterator[Step]:
        """Yield the step as each combination of its own arms makes it, to learn what it may refer to."""
        for arm in self._arms_of(self._touching(name)):
            made = self.parse_step(name, self._changed(name, arm), self.problems) if arm else step
            if made is not None:
                yield made

    def _arms_of(self, axes: tuple[str, ...]) -> list[Arm]:
        return [tuple(zip(axes, arms, strict=True)) for arms in itertools.product(*(self.axes[axis] for axis in axes))]

    def _changed(self, name: str, arm: Arm) -> Node:
        """Return the step's node as the arm sets it."""
        node = self._node(name)
        # The spec's constitution holds for every step downstream too: a filter goes by its few-shot examples, say.
        owners = (name, "") if self.steps[name].constitution is None else (name,)
        for axis, chosen in arm:
            for change in self.axes[axis][chosen]:
                node = self._assigned(node, change) if change.owner in owners else node
        return node

    def _assigned(self, node: Node, change: Change) -> Node:
        try:
            return assign(node, change.path, change.node)
        except ValueError as error:
            self.problems.at(change.node.key, "matrix", str(error), "name a field of a step")
            return node

    def _report_idle_axes(self) -> None:
        used = {axis for axes in self.step_axes.values() for axis in axes}
        written = {name for name, _ in _section(self.tree, "steps")}
        for axis in self.axes:
            node = self.axes[axis][next(iter(self.axes[axis]))]
            wrong = any(change.owner in written - self.steps.keys() for change in node)
            if axis not in used and node and not wrong:  # a step that is wrong itself is reported as such
                self.problems.at(node[0].node.key, ("matrix", axis), f"the axis `{axis}` changes no step", "remove it")

    def _copied_models(self) -> dict[str, Node]:
        models: dict[str, Node] = {}
        for name, node in _section(self.tree, "models"):
            for arm in self._arms_of(self.model_axes[name]):
                made = node
                for axis, chosen in arm:
                    for change in self.axes[axis][chosen]:
                        made = self._assigned(made, change) if change.owner == f"models.{name}" else made
                models[_label(name, arm)] = made
        return models

    def _copied_steps(self, copies: Mapping[str, list[Arm]]) -> tuple[dict[str, Node], dict[str, Step]]:
        nodes: dict[str, Node] = {}
        parsed: dict[str, Step] = {}
        for name, arms in copies.items():
            for arm in arms:
                copy, node = _label(name, arm), self._changed(name, arm) if name in self.steps else self._node(name)
                before = len(self.problems)
                step = self.parse_step(copy, node, self.problems) if name in self.steps else None
                if step is not None:
                    node = self._renamed(node, step, arm)
                    step = self.parse_step(copy, node, self.problems)
                nodes[copy] = node
                if step is not None and len(self.problems) == before:
                    parsed[copy] = step
        return nodes, parsed

    def _node(self, name: str) -> Node:
        node: Node = self.tree.value["steps"].value[name]
        return node

    def _renamed(self, node: Node, step: Step, arm: Arm) -> Node:
        """Return the step's node with each reference naming the copy that belongs to the same arm, or every copy for `@*`."""
        chosen = dict(arm)
        gathered: list[tuple[Path_, bool]] = []
        for ref in step.references():
            axes = self.step_axes.get(ref.name) or self.model_axes.get(ref.name) or ()
            if ref.name.endswith("@*"):
                gathered.append((ref.path, ref.key))
            elif axes:
                name = _label(ref.name, tuple((axis, chosen[axis]) for axis in axes))
                node = _rename_key(node, ref.path, [name]) if ref.key else _set(node, ref.path, name)
        for path, key in reversed(gathered):
            names = self._gather(str(path[-1]) if key else str(_at(node, path).value))
            node = self._spliced(node, path, key, names)
        return node

    def _gather(self, name: str) -> list[str]:
        base = name.removesuffix("@*")
        return [_label(base, arm) for arm in self._arms_of(self.step_axes.get(base) or self.model_axes.get(base) or ())]

    def _spliced(self, node: Node, path: Path_, key: bool, names: list[str]) -> Node:
        if key:
            return _rename_key(node, path, names)
        parent = _at(node, path[:-1])
        if not isinstance(parent.value, tuple):
            at = _at(node, path).at
            self.problems.at(at, path, "`@*` names several steps, but this field takes one", "name one arm, as STEP@ARM")
            return node
        index, old = int(path[-1]), _at(node, path)
        items = (*parent.value[:index], *(old._replace(value=name) for name in names), *parent.value[index + 1 :])
        return _put(node, path[:-1], parent._replace(value=items))


def _section(tree: Node, key: str) -> list[tuple[str, Node]]:
    section = tree.child(key)
    return list(section.items()) if section else []


def _place(tree: Node, key: str) -> tuple[Any, Any]:
    section = tree.child(key) or tree
    return section.at, section.key


def _label(name: str, arm: Arm) -> str:
    return name + ("@" + "+".join(chosen for _, chosen in arm) if arm else "")


def _at(node: Node, path: Path_) -> Node:
    return node.nearest(path)


def _put(node: Node, path: Path_, value: Node) -> Node:
    return assign(node, path, value)


def _set(node: Node, path: Path_, name: str) -> Node:
    return _put(node, path, _at(node, path)._replace(value=name))


def _rename_key(node: Node, path: Path_, names: list[str]) -> Node:
    parent = _at(node, path[:-1])
    items: dict[str, Node] = {}
    for key, value in parent.items():
        items.update(dict.fromkeys(names, value) if key == path[-1] else {key: value})
    return _put(node, path[:-1], parent._replace(value=items))
