"""Several answers to one prompt in an order, by rank or score: from a list to pairs. Never reads what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.operators.formats.dialogue import shorten
from caiflow.operators.formats.named.fields import Record, has
from caiflow.operators.formats.named.layout import Take
from caiflow.operators.formats.named.pairs import QUESTIONS

_ORDERED = ("ranked", "ranked_answers", "ranked_responses", "output")
_LISTS = ("answers", "responses", "completions", "candidates", "outputs", "generations", "sampled_answers", *_ORDERED)
_TEXTS = ("answer", "response", "text", "content", "completion", "output", "generation", "sampled_string")
_RANKS = ("rank", "ranks", "ranking", "rankings")
_SCORES = ("score", "scores", "overall_score", "rating", "ratings", "reward", "rewards", "pm_score", "pm_scores")


def is_ranked(record: Record) -> bool:
    """Return whether a record has a question, and a list of answers of which something says how good they are."""
    name = _list_in(record)
    if name is None or not any(has(asked)(record) for asked in QUESTIONS):
        return False
    return _marks(record, name) is not None or name in _ORDERED[:-1]


def in_pairs(records: Sequence[Record], take: Take) -> Sequence[Record]:
    """Return a record for each pair of answers: the best and the worst, or any two that aren't alike.

    Of several that are best, or worst, the first one counts; where all are alike, the record has no pair. Blank ones are aside.

    Raises:
        ValueError: there are no two such answers, or nothing says which is better.
    """
    (record,) = records
    name = _list_in(record)
    if name is None:
        raise WrongValue("no list of two answers or more", f"such as `answers`; it has {', '.join(record)}")
    texts, worth = [_text(item) for item in record[name]], _worth(record, name)
    places = [place for place, text in enumerate(texts) if text and text.strip()]
    if len(places) < 2:
        raise ValueError(f"of `{name}` fewer than two say anything")
    best, worst = max(places, key=worth.__getitem__), min(places, key=worth.__getitem__)
    order = sorted(places, key=lambda place: -worth[place])
    pairs = [(yes, no) for yes, no in combinations(order, 2) if worth[yes] > worth[no]] if take == "all" else [(best, worst)]
    return [{**record, "chosen": texts[yes], "rejected": texts[no], "p_chosen": None} for yes, no in pairs or [(best, worst)]]


def _list_in(record: Record) -> str | None:
    """Return the field that has two answers or more, as texts or as objects that have one."""
    for name in _LISTS:
        value = record.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1 and None not in map(_text, value):
            return name
    return None


def _text(item: Any) -> str | None:
    if isinstance(item, Mapping):
        item = next((item[name] for name in _TEXTS if isinstance(item.get(name), str)), None)
    return item if isinstance(item, str) else None


def _marks(record: Record, name: str) -> tuple[str, list[Any]] | None:
    """Return the field that says how good each answer is, in the answers or beside them, and what it says."""
    items = record[name]
    for field in (*_RANKS, *_SCORES):
        inside = [item.get(field) if isinstance(item, Mapping) else None for item in items]
        beside = record.get(field)
        if any(value is not None for value in inside):
            return field, inside
        if isinstance(beside, Sequence) and not isinstance(beside, str) and len(beside) == len(items) and field != name:
            return field, list(beside)
    return None


def _worth(record: Record, name: str) -> list[float]:
    """Return a number for each answer, the higher the better.

    Raises:
        ValueError: nothing says so, or not of each.
    """
    marks = _marks(record, name)
    if marks is None and name not in _ORDERED:
        raise WrongValue(
            f"nothing says which of `{name}` is better", f"a field such as `rank` or `score`; it has {', '.join(record)}"
        )
    if marks is None:
        return [-float(place) for place in range(len(record[name]))]
    field, values = marks
    sign = -1.0 if field in _RANKS else 1.0
    return [sign * _number(field, value) for value in values]


def _number(field: str, value: Any) -> float:
    """Return the number that a value is, or that the only item in it is."""
    inner = value
    while isinstance(inner, (list, Mapping)) and len(inner) == 1:
        inner = next(iter(inner.values() if isinstance(inner, Mapping) else inner))
    try:
        number = float("nan" if isinstance(inner, bool) else inner)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"`{field}` must be a number for each answer, got {shorten(value)}")
    return number
