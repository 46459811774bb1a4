"""The types of columns that a source brings along: found by looking at all values, then kept as Arrow types.

Plain values of several kinds (text here, a number or a flag there) become text, each as JSON writes it without its quotes;
so do fractions beside whole numbers whose digits a float would lose. What else has no one Arrow type (a list here and a text
there, objects without fields or with very many) becomes JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from caiflow.engine.rows.columns import ColumnType

if TYPE_CHECKING:
    import pyarrow as pa

Leaf = Literal["null", "flag", "integer", "long", "number", "text", "json"]
"""`long` is an integer of 64 bits whose digits a float would lose."""
_PLAIN: frozenset[Shape] = frozenset(("flag", "integer", "long", "number", "text"))
_WIDEST, _DEEPEST = 64, 6


class ListOf(NamedTuple):
    """A list whose items have one shape."""

    item: Shape


class Struct(NamedTuple):
    """An object with these fields, some of which may be absent."""

    fields: tuple[tuple[str, Shape], ...]


Shape = Leaf | ListOf | Struct
MESSAGES: Shape = ListOf(Struct((("role", "text"), ("content", "text"))))
CANONICAL: Mapping[str, Shape] = {
    "uid": "text",
    "prompt": MESSAGES,
    "response": "text",
    "principle": "text",
    "critique": "text",
    "revision": "text",
    "messages": MESSAGES,
    "chosen": "text",
    "rejected": "text",
    "p_chosen": "number",
}
"""caiflow's own columns and the shape each has everywhere."""


def shape_of(value: Any, depth: int = 0) -> Shape:
    """Return the shape of one value as JSON knows it; whole numbers of more than 64 bits, dates and the like are text."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        return whole(value) if -(2**63) <= value < 2**63 else "text"
    if isinstance(value, float):
        return "number"
    if depth < _DEEPEST and isinstance(value, list):
        return ListOf(_join(value, depth))
    if depth < _DEEPEST and isinstance(value, dict) and 0 < len(value) <= _WIDEST:
        return Struct(tuple((str(name), shape_of(item, depth + 1)) for name, item in value.items()))
    return "json" if isinstance(value, (list, dict, tuple)) else "text"


def whole(*values: int) -> Shape:
    """Return the shape of whole numbers of 64 bits taken together."""
    return "integer" if all(int(float(value)) == value for value in values) else "long"


def merge(left: Shape, right: Shape) -> Shape:
    """Return the narrowest shape that holds both: text for plain values of several kinds, `json` where no Arrow type does."""
    if left == right or right == "null":
        return left
    if left == "null":
        return right
    if {left, right} == {"integer", "number"}:
        return "number"
    if {left, right} == {"integer", "long"}:
        return "long"
    if left in _PLAIN and right in _PLAIN:
        return "text"
    if isinstance(left, ListOf) and isinstance(right, ListOf):
        return ListOf(merge(left.item, right.item))
    if isinstance(left, Struct) and isinstance(right, Struct):
        fields = dict(left.fields)
        for name, shape in right.fields:
            fields[name] = merge(fields.get(name, "null"), shape)
        return Struct(tuple(fields.items())) if len(fields) <= _WIDEST else "json"
    return "json"


def column_type(shape: Shape) -> ColumnType | None:
    """Return caiflow's word for a shape, None where it has none."""
    simple: Mapping[Shape, ColumnType] = {
        "null": "text",
        "flag": "flag",
        "integer": "integer",
        "long": "integer",
        "number": "number",
        "text": "text",
        "json": "json",
        ListOf("text"): "texts",
        ListOf("number"): "numbers",
        MESSAGES: "messages",
        ListOf(MESSAGES): "conversations",
    }
    return simple.get(shape)


def arrow_type(shape: Shape) -> pa.DataType:
    """Return the Arrow type of a shape; JSON text and columns that are always null are strings."""
    import pyarrow as pa

    if isinstance(shape, ListOf):
        return pa.list_(arrow_type(shape.item))
    if isinstance(shape, Struct):
        return pa.struct([(name, arrow_type(inner)) for name, inner in shape.fields])
    leaves = {"flag": pa.bool_(), "integer": pa.int64(), "long": pa.int64(), "number": pa.float64()}
    return leaves.get(shape, pa.string())


def fit(value: Any, shape: Shape) -> Any:
    """Return `value` as Arrow takes it under `shape`: text or JSON text where the shape says so, floats for whole numbers."""
    if value is None or shape in ("flag", "integer", "long"):
        return value
    if shape == "text":
        return value if isinstance(value, str) else _plain(value)
    if shape == "number":
        return float(value)
    if isinstance(shape, ListOf):
        return [fit(item, shape.item) for item in value]
    if isinstance(shape, Struct):
        return {name: fit(value.get(name), inner) for name, inner in shape.fields}
    return json.dumps(value, ensure_ascii=False, default=str)


def _plain(value: Any) -> str:
    """Return a number or flag as JSON writes it, and a date and the like as it is read."""
    return json.dumps(value) if isinstance(value, (bool, int, float)) else str(value)


def _join(values: list[Any], depth: int) -> Shape:
    joined: Shape = "null"
    for value in values:
        joined = merge(joined, shape_of(value, depth + 1))
    return joined
