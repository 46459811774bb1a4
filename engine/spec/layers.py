"""One tree out of several: `extends:`, `profiles:`, and `--set`.

Works on trees before anything is validated, so that every layer is checked alike and each value keeps its own place. What is
laid over replaces, except that mappings are merged key by key; a null takes the key away; a step with another `op` is replaced
as a whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.errors import Problem, SpecError, suggest
from caiflow.engine.spec.reach import Reach, out_of_reach
from caiflow.engine.yaml.reader import parse_yaml, read_yaml, scalar
from caiflow.engine.yaml.tree import Location, Node, Path_, dotted

MAX_EXTENDS = 10


class ByHand(str):
    """Stands for the file in the places of what the user wrote by hand: an option, or a dict in Python."""


COMMAND_LINE = ByHand("--set")
"""Where values given by `--set` stand; the line is the option's number."""
OF_WEIGHTS = ("revision", "tokenizer", "chat_template", "adapter")
"""Fields of a model that belong to the weights which its `source` names."""
TOP = ("caiflow", "name", "description", "seed", "constitution", "models", "steps", "profiles", "extends", "matrix")


class Problems(list[Problem]):
    """Findings so far."""

    def at(self, place: Location, path: Path_ | str, message: str, hint: str = "") -> None:
        """Add a finding at a place."""
        shown = path if isinstance(path, str) else dotted(path)
        self.append(Problem(place.file, place.line, place.col, shown, message, hint))


class Layers(NamedTuple):
    """A spec laid over what it extends, with a profile and overrides over that; `extends` and `profiles` are gone from it."""

    tree: Node
    profiles: tuple[str, ...]
    """The names that could be chosen."""
    remarks: Problems
    """What is worth knowing of how they lie over each other."""


def read_layers(
    path: Path, sets: Sequence[str], profile: str | None, problems: Problems, reach: Reach, text: str | None = None
) -> Layers:
    """Return the spec at `path` with its layers carried out; `text` is what it says, where it isn't in a file.

    Raises:
        SpecError: a file can't be read as YAML, or what it extends can't be found or is beyond its reach.
    """
    left: list[_Left] = []
    tree = _extended(path, (), problems, reach, left, text)
    profiles = tree.child("profiles")
    names = tuple(name for name, _ in profiles.items()) if profiles else ()
    for name in [] if profile is None else profiles_of(profile, names):
        tree = _with_profile(tree, name, problems, left)
    tree = tree._replace(value={key: node for key, node in tree.items() if key != "profiles"})
    for number, text in enumerate(sets, 1):
        before, tree = tree, _with_set(tree, text, number, problems)
        left += _left_of_models(before, tree)
    return Layers(tree, names, _remarks(tree, left))


class _Left(NamedTuple):
    """A field that stayed in a model's entry when a layer above gave the model another source."""

    name: str
    field: str
    node: Node
    source: Node
    """The source that it was written for."""


def _left_of_models(under: Node, over: Node) -> Iterator[_Left]:
    """Yield what stays of the models to which a layer gives another source and no word on it."""
    for name, entry in (over.child("models") or over._replace(value={})).items():
        old, new = under.get("models", name, "source"), entry.child("source")
        if old is not None and new is not None and old.value != new.value:
            kept = ((field, under.get("models", name, field), entry.child(field)) for field in OF_WEIGHTS)
            yield from (_Left(name, field, node, old) for field, node, own in kept if node and own in (None, node))


def _remarks(tree: Node, left: Sequence[_Left]) -> Problems:
    """Return a remark for each field that no later layer has changed, nor the source back."""
    remarks = Problems()
    first: dict[tuple[str, str, Location], _Left] = {}
    for one in left:
        first.setdefault((one.name, one.field, one.node.at), one)
    for name, field, node, written_for in first.values():
        source = tree.get("models", name, "source")
        if source and source.value != written_for.value and tree.get("models", name, field) == node:
            told = f"`{field}` of `{name}` is still the one written for {written_for.value}"
            remarks.at(source.at, ("models", name, "source"), told, f"give it anew beside `source`, or `{field}: null`")
    return remarks


def profiles_of(chosen: str, names: Collection[str]) -> list[str]:
    """Return the profiles that are chosen: one, or several with commas between, of which the later lie over the earlier."""
    return [chosen] if chosen in names else [name.strip() for name in chosen.split(",")]


def merge(under: Node, over: Node) -> Node:
    """Return `under` with `over` laid over it."""
    if not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return over
    old, new = under.child("op"), over.child("op")
    if old and new and old.value != new.value:
        return over
    items = dict(under.value)
    for key, node in over.items():
        if node.value is None:
            items.pop(key, None)
        else:
            items[key] = merge(items[key], node) if key in items else node
    return under._replace(value=items)


def assign(tree: Node, path: Path_, node: Node) -> Node:
    """Return `tree` with `node` at `path`; mappings on the way are made where missing, and a null takes the key away.

    Raises:
        ValueError: the path leads through a value that has no such key or position.
    """
    if not path:
        return node
    part, rest = path[0], path[1:]
    if isinstance(tree.value, tuple):
        if not isinstance(part, int) or not -1 < part < len(tree.value):
            raise ValueError(f"there is no position `{part}` in a list of {len(tree.value)}")
        items = list(tree.value)
        items[part] = assign(items[part], rest, node)
        return tree._replace(value=tuple(items))
    if not isinstance(tree.value, dict):
        raise ValueError(f"`{part}` leads into a plain value, got {tree.value!r}")
    values = dict(tree.value)
    if not rest and node.value is None:
        values.pop(str(part), None)
    else:
        values[str(part)] = assign(values.get(str(part), Node({}, node.key, node.key)), rest, node)
    return tree._replace(value=values)


def split_path(text: str) -> Path_:
    """Return `steps.x.samples[0].top_k` (or `.0.`) as its parts; whole numbers become list positions."""
    parts = re.split(r"\.|\[|\]\.?", text.removesuffix("]"))
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _extended(
    path: Path, seen: tuple[Path, ...], problems: Problems, reach: Reach, left: list[_Left], text: str | None = None
) -> Node:
    tree = read_yaml(path) if text is None else parse_yaml(text, ByHand(path))
    if not isinstance(tree.value, dict):
        what = "the file is empty" if tree.value is None else "a spec must be a mapping of keys to values"
        raise SpecError((Problem(str(path), tree.at.line, tree.at.col, "", what, "start with `caiflow: 1`"),))
    named = tree.child("extends")
    if named is None or not isinstance(named.value, str):
        return tree
    below = tree._replace(value={key: node for key, node in tree.items() if key != "extends"})
    if not isinstance(named.at.file, ByHand) and (target := reach.refused(path.parent / named.value)):
        problems.at(named.at, "extends", *out_of_reach(named.value, target))
        raise SpecError(tuple(problems))
    source = _extended_path(path, named.value)
    if source is None:
        hint = "give a path relative to this file, or a recipe's name"
        problems.at(named.at, "extends", f"no such file: {named.value}", hint)
        raise SpecError(tuple(problems))
    chain = (*seen, path.resolve())
    if source.resolve() in chain or len(chain) > MAX_EXTENDS:
        names = " -> ".join(step.name for step in (*chain, source))
        problems.at(named.at, "extends", f"the specs extend each other in a circle or too deep: {names}", "cut the chain")
        raise SpecError(tuple(problems))
    under = _extended(source, chain, problems, reach, left)
    left += _left_of_models(under, below)
    return merge(under, below)


def _extended_path(path: Path, named: str) -> Path | None:
    source = path.parent / named
    if os.path.isfile(source):
        return source
    if re.fullmatch(r"[A-Za-z0-9_-]+", named):
        import caiflow.specs

        bundled = Path(str(caiflow.specs.__file__)).with_name(f"{named}.yaml")
        return bundled if os.path.isfile(bundled) else None
    return None


def _with_profile(tree: Node, profile: str, problems: Problems, left: list[_Left]) -> Node:
    profiles = tree.child("profiles")
    names = [name for name, _ in profiles.items()] if profiles else []
    if profiles is None or profile not in names:
        at = profiles.key if profiles else tree.at._replace(line=1, col=1)
        problems.at(at, "profiles", f"unknown profile `{profile}`", suggest(profile, names, "profiles"))
        return tree
    chosen = profiles.value[profile]
    for key in ("profiles", "extends", "caiflow"):
        if inner := chosen.child(key):
            problems.at(inner.key, ("profiles", profile, key), f"a profile can't set `{key}`", "set it in the spec itself")
    left += _left_of_models(tree, chosen)
    return merge(tree, chosen)


def _with_set(tree: Node, text: str, number: int, problems: Problems) -> Node:
    path_text, equals, value_text = text.partition("=")
    at = Location(COMMAND_LINE, number, 1)
    if not equals or not path_text.strip():
        problems.at(at, "", f"`--set {text}` is not an assignment", "write --set steps.NAME.FIELD=VALUE")
        return tree
    path = split_path(path_text.strip())
    try:
        node = parse_value(value_text, COMMAND_LINE, number, len(path_text) + 2)
        wrong = list(_unknown_start(tree, path))
        if wrong:
            problems.at(at, path, *wrong[0])
            return tree
        return assign(tree, path, node._replace(key=at))
    except SpecError as error:
        problems.extend(error.problems)
    except ValueError as error:
        problems.at(at, path, f"`--set {text}`: {error}", "name a field of a step")
    return tree


def parse_value(text: str, file: str, line: int, col: int) -> Node:
    """Return a value written on one line: a plain scalar, or anything in quotes, brackets or braces as YAML reads it.

    Raises:
        SpecError: the brackets or quotes don't hold.
    """
    if text[:1] in ("[", "{", '"', "'"):
        # Leading blanks put the tree's columns where the text stands.
        try:
            return _moved(parse_yaml(" " * (col - 1) + text, file), line)
        except SpecError as error:
            raise SpecError(tuple(problem._replace(line=line) for problem in error.problems)) from error
    at = Location(file, line, col)
    return Node(scalar(text), at, at)


def _moved(node: Node, line: int) -> Node:
    at, key = node.at._replace(line=line), node.key._replace(line=line)
    if isinstance(node.value, dict):
        return Node({name: _moved(child, line) for name, child in node.value.items()}, at, key)
    if isinstance(node.value, tuple):
        return Node(tuple(_moved(child, line) for child in node.value), at, key)
    return Node(node.value, at, key)


def _unknown_start(tree: Node, path: Path_) -> Iterator[tuple[str, str]]:
    """Yield a message and a hint where an override's path names no top-level key, step or model."""
    first, second = str(path[0]), str(path[1]) if len(path) > 1 else ""
    if first not in TOP:
        yield f"unknown key `{first}`", suggest(first, TOP, "keys")
    elif first in ("extends", "profiles"):
        yield f"`{first}` can't be set from the command line", "edit the spec, or choose with --profile"
    elif first in ("steps", "models"):
        names = [name for name, _ in (tree.child(first) or tree).items()]
        if second not in names:
            yield f"unknown {first.removesuffix('s')} `{second}`", suggest(second, names, first)
