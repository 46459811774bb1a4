"""A row's own criteria, turned into the instruction to judge it by. Owns the forms that such a column has; asks nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from caiflow.engine.constitution.judge_prompts import score_rubric
from caiflow.engine.errors import WrongValue

_CRITERION = ("criterion", "criteria", "text", "description", "requirement", "name")
_POINTS = ("points", "weight", "score", "max_points")


def rubric_instruction(value: Any) -> str:
    """Return the instruction for a text of criteria, a list of them (with points or without), or a mapping to points.

    Empty where the row has none.

    Raises:
        WrongValue: an entry of a list is no criterion.
    """
    value = _decoded(value)
    if isinstance(value, Mapping) and (found := score_rubric(value)):
        return str(found["principles"][0]["judge"])
    if isinstance(value, Mapping):
        value = (
            [value] if any(name in value for name in _CRITERION) else [{"criterion": k, "points": v} for k, v in value.items()]
        )
    if not value:
        return ""
    if isinstance(value, str):
        return f"Judge by these criteria:\n\n{value.strip()}\n\nWhich response meets them better?"
    listed = "\n".join(f"- {_entry(item)}" for item in value)
    return (
        f"Judge by these criteria. A response earns the points of each that it meets; points below 0 are taken off:\n\n{listed}"
        "\n\nWhich response earns more points?"
    )


def _decoded(value: Any) -> Any:
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value.strip() if isinstance(value, str) else value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _entry(item: Any) -> str:
    if isinstance(item, str) and item.strip():
        return f"(1 point) {item.strip()}"
    given = item if isinstance(item, Mapping) else {}
    text = next((given[name] for name in _CRITERION if isinstance(given.get(name), str) and given[name].strip()), None)
    points = next((given[name] for name in _POINTS if given.get(name) is not None), 1)
    if text is None or not isinstance(points, int | float):
        hint = "write each as a text, or as {criterion: TEXT, points: NUMBER}"
        raise WrongValue(f"the rubric holds no criterion at {json.dumps(item, default=str)[:80]}", hint)
    return f"({points:g} point{'' if points == 1 else 's'}) {' '.join(text.split())}"
