"""From a YAML file to a frozen, validated spec.

Owns the order of things: read and lay over (`layers`), validate (`shapes`), carry the matrix out (`matrix`), check what
needs the whole (`checks`). All findings come in one SpecError. Nothing here runs a step, and no spec can name code to import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from caiflow.engine import registry
from caiflow.engine.errors import Problem, SpecError
from caiflow.engine.spec import checks, matrix
from caiflow.engine.spec.findings import Checked
from caiflow.engine.spec.grammar import ModelEntry, Spec, SpecFile, Step
from caiflow.engine.spec.layers import Problems, assign, read_layers
from caiflow.engine.spec.reach import Named, Reach, is_there, named
from caiflow.engine.spec.shapes import parse, parse_model, parse_step
from caiflow.engine.yaml.tree import Location, Node

__all__ = ["Draft", "Location", "ModelEntry", "Spec", "Step", "check_spec", "draft_spec", "in_order", "load_spec"]


class Draft(NamedTuple):
    """A spec that is read and resolved, and nothing that it names looked at; `problems` are those of its values' shapes."""

    tree: Node
    head: SpecFile | None
    models: Mapping[str, ModelEntry]
    steps: Mapping[str, Step]
    profiles: tuple[str, ...]
    reach: Reach
    problems: Problems
    remarks: Problems


def load_spec(
    path: str | Path,
    *,
    text: str | None = None,
    sets: Sequence[str] = (),
    profile: str | None = None,
    sample: int | None = None,
    allowed: Collection[Path] = (),
) -> Spec:
    """Read, resolve and check a spec.

    `text` is the YAML of a spec that isn't in a file; `path` then only says what to call it and where its paths count from.
    `sets` are assignments `steps.NAME.FIELD=VALUE`; a path in them counts from the working folder if it leads somewhere from
    there, else from the spec's. `sample` makes a trial: every step that reads a source (one with a `limit` and no input) is
    limited to that many rows, and operators' own `trial` values are set where the spec gives none. `allowed` are folders and
    files that it may read beside those within its reach.

    Raises:
        SpecError: with every problem found, in order of place.
    """
    path = Path(path)
    draft = draft_spec(path, text=text, sets=sets, profile=profile, sample=sample, allowed=allowed)
    tree, head, models, steps, profiles, reach, problems, remarks = draft
    seed = tree.child("seed")
    number = seed.value if seed and isinstance(seed.value, int) else 0
    name = (head.name if head else None) or path.stem
    _check_run_name(path, tree, name, problems)
    checked = Checked(tree, path.parent, number, models, steps, problems, remarks, reach)
    operators = checks.check(checked)
    if problems:
        raise SpecError(in_order(problems))
    assert head is not None
    raw = {"caiflow": 1, "name": name, **{key: value for key, value in tree.plain().items() if key not in ("caiflow", "name")}}
    return Spec(
        name=name,
        description=head.description,
        seed=head.seed,
        path=path,
        base_dir=path.parent.absolute(),  # workers of a cluster have folders of their own
        constitution=raw.get("constitution"),
        models=models,
        steps=steps,
        operators=operators,
        raw=raw,
        source=tree,
        led_up_to=checks.led_up_to(steps, operators, checked.needs()),
        profiles=profiles,
        remarks=tuple(checked.remarks),
        variant=_variant(sets, profile, sample),
    )


def _variant(sets: Sequence[str], profile: str | None, sample: int | None) -> tuple[str, ...]:
    chosen = [*([f"--profile {profile}"] if profile else []), *([f"--sample {sample}"] if sample else [])]
    return (*chosen, *(f"--set {text}" for text in sets))


def draft_spec(
    path: Path,
    *,
    text: str | None = None,
    sets: Sequence[str] = (),
    profile: str | None = None,
    sample: int | None = None,
    allowed: Collection[Path] = (),
) -> Draft:
    """Read and resolve a spec as `load_spec` does, without opening any other file than the specs it extends.

    Raises:
        SpecError: it can't be read as YAML, or what it extends can't be.
    """
    problems = Problems()
    reach = Reach(path.parent, allowed)
    tree, profiles, remarks = read_layers(path, sets, profile, problems, reach, text)
    if sample is not None:
        tree = _sampled(tree, sample)
    parsed = parse(tree, problems)
    tree, steps = matrix.expand(tree, parsed.steps, parse_step, problems)
    models = _models(tree, parsed.models, problems) if steps.keys() != parsed.steps.keys() else parsed.models
    rebased = _rebased(tree, path.parent, models, steps)
    if rebased is not tree:
        tree = rebased
        models = _models(tree, models, problems)
        steps = {name: parse_step(name, tree.nearest(("steps", name)), problems) or step for name, step in steps.items()}
    return Draft(tree, parsed.head, models, steps, profiles, reach, problems, remarks)


def _check_run_name(path: Path, tree: Node, name: str, problems: Problems) -> None:
    """Report a name of the spec that no folder of its runs could have; by default it is the file's."""
    if len(name.encode()) > checks.LONGEST_NAME:
        at = node.at if (node := tree.child("name")) else Location(str(path), 1, 1)
        hint = f"write a `name` of at most {checks.LONGEST_NAME} bytes"
        problems.at(at, "name", "the spec's name is too long for the folders of its runs", hint)


_OF_AN_ARM = re.compile(r"@[\w.+-]+(?=`)|, got .*", re.DOTALL)
"""What tells the arms of a matrix apart in a message: the arm at the end of a step's name, and the value that an arm sets."""


def check_spec(path: str | Path, *, sets: Sequence[str] = (), profile: str | None = None) -> list[Problem]:
    """Return everything wrong with a spec, in order of place; empty where it is right."""
    try:
        load_spec(path, sets=sets, profile=profile)
    except SpecError as error:
        return list(error.problems)
    return []


def in_order(problems: Problems) -> tuple[Problem, ...]:
    """Return each finding once; copies of a step in several arms share theirs, whichever arm or value they name."""
    unique: dict[tuple[str, int, int, str], Problem] = {}
    for problem in problems:
        unique.setdefault((problem.file, problem.line, problem.col, _OF_AN_ARM.sub("", problem.message)), problem)
    return tuple(sorted(unique.values(), key=lambda problem: (problem.file, problem.line, problem.col)))


def _sampled(tree: Node, sample: int) -> Node:
    """Return the tree of a trial: `limit` on every step that reads no other step, and the operators' `trial` values."""
    steps = tree.child("steps")
    for name, step in steps.items() if steps else ():
        op = step.child("op")
        if op is None or not isinstance(op.value, str) or not registry.exists(op.value):
            continue
        params = registry.operator(op.value).params_type
        for field, value in params.trial.items():
            if step.child(field) is None:
                tree = assign(tree, ("steps", name, field), Node(value, step.at, step.key))
        fields = params.model_fields
        given = step.child("limit")
        if "limit" in fields and "input" not in fields and "inputs" not in fields:
            now = given.value if given and isinstance(given.value, int) else sample
            tree = assign(tree, ("steps", name, "limit"), Node(min(now, sample), step.at, step.key))
    return tree


def _models(tree: Node, parsed: Mapping[str, ModelEntry], problems: Problems) -> dict[str, ModelEntry]:
    """Return the entries of `models:` as the tree now has them, the copies that a matrix made among them."""
    section = tree.child("models")
    wanted = [
        (name, node)
        for name, node in (section.items() if section else ())
        if name.partition("@")[0] in parsed or name in parsed
    ]
    made = ((name, parse_model(name, node, problems)) for name, node in wanted)
    return {name: entry for name, entry in made if entry is not None}


def _rebased(tree: Node, base_dir: Path, models: Mapping[str, ModelEntry], steps: Mapping[str, Step]) -> Node:
    """Return the tree with paths written in another file (`extends`) or on the command line made relative to the spec."""
    for found in list(named(models, {name: step.marks("x-path") for name, step in steps.items()}, tree)):
        node = tree.get(*found.place)
        if node is not None and (moved := _moved(found, Path(node.at.file).parent, base_dir)):
            tree = assign(tree, found.place, node._replace(value=moved))
    return tree


def _moved(found: Named, written_in: Path, base_dir: Path) -> str | None:
    """Return the path from the spec's folder; None where the value stands in that folder, or names nothing beside its file."""
    if written_in == base_dir or Path(found.value).is_absolute():
        return None
    target = written_in / found.value
    there = target.is_file() if found.takes == "constitution" else is_there(target)  # a folder may have a bundled one's name
    return os.path.relpath(target, base_dir) if there else None
