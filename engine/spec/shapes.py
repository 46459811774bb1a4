"""Is each value of a spec of the right shape? The parameter models decide, the JSON Schema explains.

A spec that its models take as written is right, and nothing more is loaded. Where they refuse or would convert a value, the
schema is checked with `jsonschema`, and its errors become problems at the key or value itself. Whatever the schema can't say
(a model's own validators) is reported from the model. Follows no reference between steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from caiflow.engine import registry
from caiflow.engine.errors import CaiflowError, finding
from caiflow.engine.spec.grammar import ModelEntry, SpecFile, Step
from caiflow.engine.spec.layers import Problems
from caiflow.engine.yaml.tree import Node, Path_

STEP_KEYS = ("op", "constitution")
"""Keys of a step that aren't its operator's parameters."""


class Parsed:
    """What could be understood of a spec, whatever is wrong elsewhere."""

    def __init__(self) -> None:
        self.models: dict[str, ModelEntry] = {}
        self.steps: dict[str, Step] = {}
        self.head: SpecFile | None = None


def parse(tree: Node, problems: Problems) -> Parsed:
    """Validate the tree, add every finding to `problems`, and return the parts that are right."""
    parsed = Parsed()
    doubts: list[tuple[Path_, ValidationError | None]] = []
    head = {key: node.plain() for key, node in tree.items()}
    parsed.head = _validated(SpecFile, head, (), doubts)
    if parsed.head is not None and not doubts:
        parsed.models = dict(parsed.head.models)
    else:
        for name, node in _entries(tree, "models"):
            if entry := _validated(ModelEntry, node.plain(), ("models", name), doubts):
                parsed.models[name] = entry
    for name, node in _entries(tree, "steps"):
        if step := _step(name, node, doubts):
            parsed.steps[name] = step
    if doubts:
        wrong = _explain(tree, doubts, problems)
        parsed.models = {name: entry for name, entry in parsed.models.items() if ("models", name) not in wrong}
        parsed.steps = {name: step for name, step in parsed.steps.items() if ("steps", name) not in wrong}
    return parsed


def parse_step(name: str, node: Node, problems: Problems) -> Step | None:
    """Validate one step whose spec is right but for it; add what is wrong with it to `problems`."""
    doubts: list[tuple[Path_, ValidationError | None]] = []
    step = _step(name, node, doubts)
    return None if doubts and _explain(_alone("steps", name, node), doubts, problems) else step


def parse_model(name: str, node: Node, problems: Problems) -> ModelEntry | None:
    """Validate one entry of `models:` whose spec is right but for it; add what is wrong with it to `problems`."""
    doubts: list[tuple[Path_, ValidationError | None]] = []
    entry: ModelEntry | None = _validated(ModelEntry, node.plain(), ("models", name), doubts)
    return None if doubts and _explain(_alone("models", name, node), doubts, problems) else entry


def _alone(key: str, name: str, node: Node) -> Node:
    """Return a spec of one entry, at the places of the entry."""
    at = node.at
    section = {"caiflow": Node(1, at, at), "extends": Node("", at, at)}  # `extends` lets a spec be without steps
    return Node({**section, key: Node({name: node}, at, at)}, at, at)


def _entries(tree: Node, key: str) -> list[tuple[str, Node]]:
    section = tree.child(key)
    return list(section.items()) if section else []


def _step(name: str, node: Node, doubts: list[tuple[Path_, ValidationError | None]]) -> Step | None:
    path = ("steps", name)
    op = node.child("op")
    if op is None or not isinstance(op.value, str):
        doubts.append((path, None))
        return None
    try:
        params_type = registry.operator(op.value).params_type
    except registry.UnknownOperatorError:
        doubts.append((path, None))
        return None
    given = {key: value.plain() for key, value in node.items() if key not in STEP_KEYS}
    params = _validated(params_type, given, path, doubts)
    constitution = node.child("constitution")
    return Step(name, op.value, params, constitution.plain() if constitution else None) if params is not None else None


def _validated(model: type[Any], given: Any, path: Path_, doubts: list[tuple[Path_, ValidationError | None]]) -> Any:
    """Return the model of `given`, or None; a refusal or a conversion goes to `doubts`."""
    try:
        value: BaseModel = model.model_validate(given)
    except ValidationError as error:
        doubts.append((path, error))
        return None
    if _converted(given, value.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)):
        doubts.append((path, None))
    return value


def _converted(given: Any, taken: Any) -> bool:
    """Return whether a scalar was turned into another type, such as the text "5" into a number."""
    if isinstance(given, Mapping) and isinstance(taken, Mapping):
        return any(_converted(value, taken[key]) for key, value in given.items() if key in taken)
    if isinstance(given, list) and isinstance(taken, list):
        return any(map(_converted, given, taken))
    if isinstance(given, (Mapping, list)) or isinstance(taken, (Mapping, list)):
        return False
    return type(given) is not type(taken) and not (type(given) is int and type(taken) is float)


def _explain(tree: Node, doubts: list[tuple[Path_, ValidationError | None]], problems: Problems) -> set[Path_]:
    """Add what is wrong to `problems`; return the models and steps that are."""
    from caiflow.engine.spec import messages

    wrong: set[Path_] = set()
    try:
        for path in messages.schema_problems(tree, problems):
            wrong.add(path[:2])
    except CaiflowError as error:
        problems.at(tree.at, *finding(error))
    for path, refusal in doubts:
        if refusal is not None and not any(known[: len(path)] == path for known in wrong):
            messages.model_problems(tree, path, refusal, problems)
            wrong.add(path)
    return wrong
