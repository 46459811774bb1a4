"""Values that know their place in a file.

Owns the tree that YAML becomes; reads nothing and knows nothing of specs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Path_ = tuple[str | int, ...]


class Location(NamedTuple):
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    col: int


class Node(NamedTuple):
    """A value with its place and that of the key before it: a scalar, a tuple of nodes, or a dict of nodes by key."""

    value: Any
    at: Location
    key: Location

    def plain(self) -> Any:
        """Return the value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value

    def get(self, *path: str | int) -> Node | None:
        """Return the node at `path`, or None where there is none."""
        node: Node | None = self
        for part in path:
            node = node.child(part) if node is not None else None
        return node

    def child(self, part: str | int) -> Node | None:
        """Return the node under a key or an index, or None."""
        found: Node | None = None
        if isinstance(self.value, dict):
            found = self.value.get(part)
        elif isinstance(self.value, tuple) and isinstance(part, int) and -1 < part < len(self.value):
            found = self.value[part]
        return found

    def nearest(self, path: Path_) -> Node:
        """Return the node at `path`, or the last one on the way there; parts that lead nowhere are passed over."""
        node = self
        for part in path:
            node = node.child(part) or node
        return node

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yield the keys and nodes of a mapping; nothing for any other value."""
        yield from self.value.items() if isinstance(self.value, dict) else ()


def dotted(path: Path_) -> str:
    """Return a path as `steps.mix.inputs`, list positions as `[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
