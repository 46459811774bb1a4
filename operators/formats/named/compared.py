"""Two answers and a column that says which is preferred: telling the one from the other. Never reads what they say."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from caiflow.engine.errors import WrongValue

_STEMS = ("response", "answer", "output", "text", "conversation", "completion", "human_ref")
_ENDS = (("0", "1"), ("a", "b"), ("A", "B"), ("1", "2"))
_CHOICES = ("better_response_id", "preferred_text", "winner", "preferred", "preference")
_STRENGTHS = ("preference_strength", "overall_preference")
"""Numbers below 0 where the first answer is preferred (HelpSteer)."""
_TIES = ("tie", "tie_(bothbad)", "both", "neither", "both_bad")


class _Two(NamedTuple):
    """The fields of two answers, and the ends by which other fields are theirs too."""

    names: tuple[str, str]
    ends: tuple[str, str]

    def fields(self, pattern: str) -> tuple[str, str]:
        """Return the two fields of a kind, such as `score_{}`."""
        return pattern.format(self.ends[0]), pattern.format(self.ends[1])


def preferred(record: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the preferred answer and the other one; where neither is preferred, the same one twice.

    Raises:
        ValueError: there are no two answers, no column that says so, or what it says is none of them.
    """
    two = _answers([name for name, value in record.items() if value is not None])
    if two is None:
        raise WrongValue("no two answers", f"they are named such as `response_0` and `response_1`; it has {', '.join(record)}")
    worth = _worth(record, two)
    if worth is None:
        known = ", ".join((*_CHOICES, *_STRENGTHS, *two.fields("score_{}")))
        raise WrongValue("nothing says which answer is preferred", f"one of {known}; it has {', '.join(record)}")
    better, worse = two.names if worth > 0 else reversed(two.names)
    return (record[better], record[worse]) if worth else (record[better], record[better])


def told_apart(columns: Collection[str]) -> tuple[str, str] | None:
    """Return the names of two answers, if there is a column too that says which is preferred."""
    two = _answers(columns)
    said = two and (*_CHOICES, *_STRENGTHS, *two.fields("winner_model_{}"), *two.fields("score_{}"))
    return two.names if two and said and any(name in columns for name in said) else None


def _answers(columns: Collection[str]) -> _Two | None:
    for stem in (f"{stem}{sign}" for stem in _STEMS for sign in ("_", "")):
        for one, two in _ENDS:
            if stem + one in columns and stem + two in columns:
                return _Two((stem + one, stem + two), (one, two))
    return None


def _worth(record: Mapping[str, Any], two: _Two) -> float | None:
    """Return a number above 0 where the first answer is preferred, below 0 where the second is; None where nothing says.

    Raises:
        ValueError: what is said is none of these.
    """
    said = next((name for name in _CHOICES if record.get(name) is not None), None)
    if said is not None:
        return _chosen(said, record[said], two)
    strength = next((name for name in _STRENGTHS if record.get(name) is not None), None)
    if strength is not None:
        return -_number(strength, record[strength])
    for one, other in map(two.fields, ("winner_model_{}", "score_{}")):
        if record.get(one) is not None and record.get(other) is not None:
            return _number(one, record[one]) - _number(other, record[other])
    return None


def _chosen(said: str, value: Any, two: _Two) -> float:
    """Return the worth that a choice gives, made by an answer's number, letter or name."""
    text = str(value).strip(" []").lower().replace(" ", "_").removesuffix(".0")
    if text in _TIES or (text == "1.5" and two.ends == ("1", "2")):
        return 0.0
    names, ends = ([name.lower() for name in part] for part in two)
    sides = [place for place in (0, 1) if text == names[place] or text.rpartition("_")[2] == ends[place]]
    if len(sides) != 1:
        raise ValueError(f"`{said}` is {value!r}, which is neither `{two.names[0]}` nor `{two.names[1]}`")
    return 1.0 - 2.0 * sides[0]


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"`{name}` must be a number, got {value!r}")
    return number
