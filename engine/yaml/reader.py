"""YAML as a tree in which every key and value knows its place in the file.

Owns reading YAML safely: PyYAML's safe loader turns text into events, and the tree is built here under bounds on size, depth
and expansion. Plain scalars follow YAML 1.2 (`no` is text, `2e-5` a number), and no tag ever makes an object. This module
never knows what a spec is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from caiflow.engine.errors import Problem, SpecError
from caiflow.engine.yaml.syntax import told
from caiflow.engine.yaml.tree import Location, Node, dotted

MAX_BYTES = 1 << 20
"""Largest file read, in bytes."""
MAX_DEPTH = 60
"""Deepest nesting."""
MAX_NODES = 50_000
"""Most keys and values, counted after aliases are expanded."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONGEST_NUMBER = 300  # characters; a longer one stays text, which no field takes
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def scalar(text: str) -> Any:
    """Return the value of a plain scalar by the YAML 1.2 core rules: null, true, false, numbers, else the text itself.

    Infinities and NaN stay text: no field takes them.
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) < _LONGEST_NUMBER and _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(value := float(text)):
        return value
    return text


def read_yaml(path: Path, shown: str | None = None) -> Node:
    """Read one YAML document; `shown` is the file's name in messages.

    Raises:
        SpecError: the file is missing, unreadable, too large, not UTF-8, not one YAML document, or beyond a bound.
    """
    name = shown or str(path)

    def refuse(message: str, hint: str = "") -> SpecError:
        return SpecError((Problem(name, 1, 1, "", message, hint),))

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise refuse("this is a folder, not a YAML file") from error
    except OSError as error:
        raise refuse(f"can't read the file: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise refuse(f"the file is larger than {MAX_BYTES} bytes", "a spec is small; put data in files of their own")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError((Problem(name, line, 1, "", "the file is not UTF-8 text", "save it as UTF-8"),)) from error
    return parse_yaml(text, name)


def parse_yaml(text: str, file: str, *, aliases: bool = True) -> Node:
    """Parse one YAML document; `aliases` says whether it may hold any.

    Raises:
        SpecError: with every duplicate key, tag and bad alias found, or the first syntax error.
    """
    builder = _Builder(file, aliases)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        found = told(error, text)
        builder.refuse(Location(file, found.line + 1, found.column + 1), f"this is not valid YAML: {found.message}", found.hint)
    except yaml.YAMLError as error:
        character = getattr(error, "character", None)
        what = f"the character {character!r} is not allowed" if character is not None else str(error).split("\n")[0]
        builder.refuse(_offset(text, file, getattr(error, "position", 0) or 0), f"this is not valid YAML: {what}")
    except _Stop:
        pass
    if builder.problems:
        raise SpecError(tuple(builder.problems))
    return builder.root or Node(None, Location(file, 1, 1), Location(file, 1, 1))


class _Stop(Exception):
    """A bound was passed: nothing more is read."""


class _Open:
    """A collection that is being filled; `waiting` is the key whose value comes next."""

    def __init__(self, at: Location, anchor: str | None, items: dict[str, Node] | list[Node]) -> None:
        self.at = at
        self.anchor = anchor
        self.items = items
        self.waiting: tuple[str, Location] | None = None
        self.merging: Location | None = None
        self.merged: tuple[Node, ...] = ()


class _Builder:
    """Builds the tree from parser events, with an explicit stack so that depth is bounded by a number, not by the C stack."""

    def __init__(self, file: str, aliases: bool) -> None:
        self.file = file
        self.aliases = aliases
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.nodes = 0

    def location(self, mark: Any) -> Location:
        return Location(self.file, mark.line + 1, mark.column + 1)

    def refuse(self, at: Location, message: str, hint: str = "") -> None:
        path = dotted(tuple(level.waiting[0] for level in self.stack if level.waiting))
        self.problems.append(Problem(at.file, at.line, at.col, path, message, hint))

    def stop(self, at: Location, message: str, hint: str = "") -> None:
        self.refuse(at, message, hint)
        raise _Stop

    def take(self, event: yaml.Event) -> None:
        """Take the parser's next event."""
        at = self.location(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            self.stop(at, "a second document starts here", "keep one document per file: remove the `---`")
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event, at)
        elif isinstance(event, yaml.ScalarEvent):
            self.check_tag(event, at)
            self.scalar(event, at)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.check_tag(event, at)
            self.open(event, at)
        elif isinstance(event, yaml.CollectionEndEvent):
            level = self.stack.pop()
            value = {**_merge(level.merged), **level.items} if isinstance(level.items, dict) else tuple(level.items)
            self.add(Node(value, level.at, level.at), level.anchor)

    def check_tag(self, event: Any, at: Location) -> None:
        if event.tag is not None and event.tag != "!":
            self.refuse(at, f"tags are not allowed, got `{event.tag}`", "remove the tag; a spec holds plain values only")

    def open(self, event: yaml.CollectionStartEvent, at: Location) -> None:
        if len(self.stack) >= MAX_DEPTH:
            self.stop(at, f"nested deeper than {MAX_DEPTH} levels")
        self.needs_key(at)
        self.stack.append(_Open(at, event.anchor, {} if isinstance(event, yaml.MappingStartEvent) else []))

    def needs_key(self, at: Location) -> None:
        level = self.stack[-1] if self.stack else None
        if level and isinstance(level.items, dict) and level.waiting is None:
            self.stop(at, "a key must be a plain word, not a list or a mapping", "quote it, or give it a name")

    def scalar(self, event: yaml.ScalarEvent, at: Location) -> None:
        level = self.stack[-1] if self.stack else None
        if level and isinstance(level.items, dict) and level.waiting is None:
            if event.value in level.items:
                first = level.items[event.value].key
                self.refuse(at, f"duplicate key `{event.value}`", f"it is already set on line {first.line}")
            if event.value == "<<":
                if level.merging:
                    self.refuse(
                        at, f"a second `<<` beside that on line {level.merging.line}", "write one: `<<: [*one, *other]`"
                    )
                level.merging = at
            level.waiting = (event.value, at)
            return
        value = scalar(event.value) if event.implicit[0] else event.value
        self.add(Node(value, at, at), event.anchor)

    def alias(self, event: yaml.AliasEvent, at: Location) -> None:
        self.needs_key(at)
        if not self.aliases:
            self.stop(at, "aliases are not allowed here", "write the text out")
        name = str(event.anchor)
        if any(level.anchor == name for level in self.stack):
            self.stop(at, f"the alias `*{name}` stands inside its own anchor", "a value can't contain itself")
        if name not in self.anchors:
            self.stop(at, f"unknown alias `*{name}`", f"mark a value above with `&{name}`, or quote the text")
        node, size = self.anchors[name]
        self.nodes += size
        if len(self.stack) + _depth(node) > MAX_DEPTH:
            self.stop(at, f"nested deeper than {MAX_DEPTH} levels once aliases are expanded")
        self.add(node._replace(at=at), None)

    def add(self, node: Node, anchor: str | None) -> None:
        """Put a finished node where it belongs."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.stop(node.at, f"more than {MAX_NODES} values once aliases are expanded", "write less, or use fewer aliases")
        if anchor:
            self.anchors[anchor] = node, _size(node)
        if not self.stack:
            self.root = node
            return
        level = self.stack[-1]
        if isinstance(level.items, list):
            level.items.append(node)
            return
        assert level.waiting is not None
        (name, key), level.waiting = level.waiting, None
        if name == "<<":
            level.merged = node.value if isinstance(node.value, tuple) else (node,)
            if not all(isinstance(part.value, dict) for part in level.merged):
                self.refuse(node.at, "`<<` takes a mapping or a list of mappings", "write `<<: *name`")
        elif name not in level.items:
            level.items[name] = node._replace(key=key)


def _merge(parts: tuple[Node, ...]) -> dict[str, Node]:
    merged: dict[str, Node] = {}
    for part in reversed(parts):
        merged.update(part.items())
    return merged


def _children(node: Node) -> Iterable[Node]:
    if isinstance(node.value, dict):
        return node.value.values()
    return node.value if isinstance(node.value, tuple) else ()


def _size(node: Node) -> int:
    return 1 + sum(map(_size, _children(node)))


def _depth(node: Node) -> int:
    return 1 + max(map(_depth, _children(node)), default=0)


def _offset(text: str, file: str, position: int) -> Location:
    line = text.count("\n", 0, position) + 1
    return Location(file, line, position - text.rfind("\n", 0, position))
