"""Two answers and a column that says which is preferred: telling the one from the other. Never reads what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caiflow.engine.errors import WrongValue

_STEMS = ("response", "answer", "output", "text", "conversation", "completion")
_ENDS = (("0", "1"), ("a", "b"), ("1", "2"))
_CHOICES = ("better_response_id", "preferred_text", "winner", "preferred", "preference")
_TIES = ("tie", "tie (bothbad)", "both", "neither", "both_bad")


def preferred(record: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the preferred answer and the other one; where neither is preferred, the same one twice.

    Raises:
        ValueError: there are no two answers, no column that says so, or what it says is none of them.
    """
    pairs = ((f"{stem}_{one}", f"{stem}_{two}") for stem in _STEMS for one, two in _ENDS)
    names = next((pair for pair in pairs if all(record.get(name) is not None for name in pair)), None)
    if names is None:
        raise WrongValue("no two answers", f"they are named such as `response_0` and `response_1`; it has {', '.join(record)}")
    said = next((name for name in _CHOICES if record.get(name) is not None), None)
    if said is None:
        raise WrongValue("nothing says which answer is preferred", f"one of {', '.join(_CHOICES)}; it has {', '.join(record)}")
    value = str(record[said]).strip().lower()
    if value in _TIES:
        return record[names[0]], record[names[0]]
    sides = [place for place, name in enumerate(names) if value == name or value.rpartition("_")[2] == name.rpartition("_")[2]]
    if len(sides) != 1:
        raise ValueError(f"`{said}` is {record[said]!r}, which is neither `{names[0]}` nor `{names[1]}`")
    return record[names[sides[0]]], record[names[1 - sides[0]]]
