"""Principles under others' names: lists, mappings and tables of them, turned into caiflow's own names.

Owns the knowledge of those names. What only describes a principle (a category, a number) is left out. Reads no file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caiflow.engine.errors import nearest

Data = dict[str, Any]
RULE = ("text", "principle", "definition", "description", "trait", "statement", "guideline", "rule")
CRITIQUE = ("critique_request", "critic", "critique_prompt", "critique")
REVISION = ("revision_request", "edit_request", "revision_prompt", "rewrite", "revision")
JUDGE = ("judge_prompt", "comparison", "preference", "judge")
_THEIRS = {*RULE, *CRITIQUE, *REVISION, *JUDGE}
OWN = ("id", "critique", "revision", "judge", "rule", "guards", "weight", "passage", "rank")
_TITLES = ("id", "name", "title", "dimension")
_WEIGHTS = ("weight", "probability", "prob")
_ABOUT_FILE = {"name", "title", "version", "description", "author", "license", "source", "date", "language"}
_MARKERS = r"^\s*(?:CritiqueRequest|RevisionRequest)\s*:|\b(?:Critique|Revision|Options)\s*:\s*$"


def renamed(data: Any) -> Data | None:
    """Return the principles of a list, or of a mapping that holds or is one; None for something else.

    Raises:
        ValueError: a text of one is no text, or two have one name.
    """
    items = _items(data)
    if not items or not all(isinstance(item, Mapping) and item.keys() & _THEIRS for item in items):
        return None
    listed = isinstance(data, list) or (isinstance(data, Mapping) and "principles" in data)
    unnamed = isinstance(data, list) and not any("id" in item for item in items)
    if listed and not unnamed and not any(item.keys() & _THEIRS - {*OWN} for item in items):
        return None  # all as caiflow names them
    principles = [_principle(item, number) for number, item in enumerate(items, 1)]
    ids = [principle["id"] for principle in principles]
    again = (id for place, id in enumerate(ids) if id in ids[:place])
    if (twice := next(again, None)) is not None:
        raise ValueError(f"two principles are named {twice!r}")
    return {"principles": principles}


def without_others_keys(data: Mapping[str, Any], known: Sequence[str]) -> Data:
    """Return a constitution without the keys that mean nothing here; one that is nearly a known key stays, as a mistake."""
    items = data.get("principles")
    principles = (
        [_known(item, OWN) if isinstance(item, Mapping) else item for item in items] if isinstance(items, list) else items
    )
    return {**_known(data, known), "principles": principles}


def table_rows(text: str) -> list[dict[str, str]] | None:
    """Return the rows of a table of comma-separated values, whose first line names its columns; None for another text."""
    rows = [row for row in csv.reader(text.strip().splitlines()) if row]
    head = r"\s*\w[\w -]*" if re.search(r'(?m)^"|,"', text) else r"\s*\w+\s*"
    named = bool(rows) and all(re.fullmatch(head, cell) for cell in rows[0])
    if len(rows) < 2 or len(rows[0]) < 2 or not named or any(len(row) != len(rows[0]) for row in rows):
        return None
    columns = [cell.strip() for cell in rows[0]]
    return [{name: cell for name, cell in zip(columns, row, strict=True) if cell.strip()} for row in rows[1:]]


def slug(text: str) -> str:
    """Return the id that a text gives; empty where it has no word."""
    return "-".join(re.findall(r"\w+", text.lower())[:8])


def clean(text: str) -> str:
    """Return the text without the markers that frame it in its file."""
    previous = None
    while previous != text:
        previous, text = text, re.sub(_MARKERS, "", text).strip()
    return text


def first(value: Any) -> str:
    """Return a text, or the first of several. Raises ValueError where it is none."""
    found = value if isinstance(value, str) else value[0]
    if not isinstance(found, str):
        raise ValueError(f"a text is expected, got {type(found).__name__}")
    return found


def _known(item: Mapping[str, Any], known: Sequence[str]) -> Data:
    return {key: value for key, value in item.items() if key in known or nearest(str(key), known)}


def _items(data: Any) -> list[Any]:
    """Return what may be principles: a list's items, or those of a mapping by name, by group or under one key."""
    if isinstance(data, list):
        return data
    if not isinstance(data, Mapping):
        return []
    if "principles" in data:
        return _texts(_items(data["principles"]))
    inside = {key: value for key, value in data.items() if key not in _ABOUT_FILE or isinstance(value, list | Mapping)}
    if inside and all(isinstance(value, list) for value in inside.values()):
        return _texts([item for value in inside.values() for item in value])
    if len(inside) == 1 and isinstance(only := next(iter(inside.values())), Mapping):
        named = list(_named(only)) if not only.keys() & _THEIRS else []
        if len(inside) < len(data) or (named and all(item.keys() == {"name", "text"} for item in named)):
            return _items(only)
    return list(_named(inside))


def _texts(items: Sequence[Any]) -> list[Any]:
    return [{"text": item} if isinstance(item, str) else item for item in items]


def _named(data: Mapping[str, Any]) -> Iterator[Data]:
    """Yield the entries of {name: text} and of {name: {a principle}}; an empty one where some is neither."""
    for name, value in data.items():
        if isinstance(value, str) and len(value.split()) > 1:
            yield {"name": str(name), "text": value}
        else:
            yield {"name": str(name), **value} if isinstance(value, Mapping) else {}


def _principle(item: Mapping[str, Any], number: int) -> Data:
    """Return a principle in caiflow's names.

    Raises:
        ValueError: a text of it is no text.
    """
    found: Data = {}
    for ours, theirs in (("critique", CRITIQUE), ("revision", REVISION), ("judge", JUDGE), ("rule", RULE)):
        name = next((name for name in theirs if item.get(name) is not None), None)
        if name is not None:
            found[ours] = clean(first(item[name]))
    if {"critique", "revision"} <= found.keys() and "rule" in found and "rule" not in item:
        name = found.pop("rule")  # a title beside the two requests
    else:
        name = found.get("rule", f"principle{number}")
    title = next((item[key] for key in _TITLES if item.get(key) is not None), name)
    found["id"] = slug(str(title)) or f"principle{number}"
    weight = next((item[name] for name in _WEIGHTS if item.get(name) is not None), None)
    return found if weight is None else {**found, "weight": _number(weight)}


def _number(weight: Any) -> Any:
    """Return a weight, of a table too, whose cells are texts."""
    try:
        return float(weight) if isinstance(weight, str) else weight
    except ValueError:
        return weight
