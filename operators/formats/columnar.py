"""JSON objects of columns, as tools for tables write them: told from other objects, and turned into rows. Never reads files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Columns = Mapping[str, Mapping[Any, Any]]
"""The values of each column by their rows' numbers."""


def by_column(document: Mapping[str, Any]) -> Columns:
    """Return the columns of an object that has them; nothing of another.

    They are as pandas' `to_json` writes them, `{column: {row number: value}}` or `columns`, `index` and `data`; as polars does,
    `columns: [{name, values}]`; or lists of one length, `{column: [values]}`.
    """
    if document.keys() == {"columns", "index", "data"} and all(isinstance(part, list) for part in document.values()):
        rows = [dict(zip(document["columns"], row, strict=False)) for row in document["data"]]
        return {name: {number: row.get(name) for number, row in enumerate(rows)} for name in document["columns"]}
    if document.keys() == {"columns"} and isinstance(document["columns"], list) and all(map(_is_column, document["columns"])):
        return {column["name"]: dict(enumerate(column["values"])) for column in document["columns"]}
    if _are_lists(document):
        return {name: dict(enumerate(values)) for name, values in document.items()}
    numbered = all(isinstance(values, dict) and values and all(map(str.isdecimal, values)) for values in document.values())
    return document if numbered else {}


def rows_of_columns(columns: Columns) -> list[dict[str, Any]]:
    """Return the rows; one that a column lacks is null there."""
    numbers = dict.fromkeys(number for values in columns.values() for number in values)
    return [{name: values.get(number) for name, values in columns.items()} for number in numbers]


def is_conversation(items: list[Any]) -> bool:
    """Return whether items have the form of turns, each with who speaks and what is said or called."""
    return all(isinstance(item, dict) and bool(_WHO & item.keys()) and bool(_WHAT & item.keys()) for item in items)


_WHO = frozenset(("role", "from"))
_WHAT = frozenset(("content", "value", "parts", "tool_calls", "function_call"))


def _is_column(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("values"), list)


def _are_lists(document: Mapping[str, Any]) -> bool:
    """Return whether an object is two columns or more, of values or conversations; the turns of MT-bench are none."""
    lengths = {len(values) if isinstance(values, list) else -1 for values in document.values()}
    if len(document) < 2 or len(lengths) != 1 or lengths <= {-1, 0} or "turns" in document:
        return False
    return not any(isinstance(value, dict) for values in document.values() for value in values)
