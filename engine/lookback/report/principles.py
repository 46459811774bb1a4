"""The constitution at work: how often each principle was drawn, what it changed, and what came of that.

Reads the rows of a run's steps; asks no model and judges nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from caiflow.engine.lookback.opened import Run, Step, Table
from caiflow.engine.plan.components import TEXTS
from caiflow.engine.rows.columns import Row

EXAMPLES = 5
"""Changed answers that are shown of each principle."""
JUDGED = ("principles", "p_a", "votes")


@dataclass(slots=True)
class _Work:
    """What one principle did in a run."""

    drawn: int = 0
    revised: int = 0
    changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    flips: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)
    beside: Counter[str] = field(default_factory=Counter)
    """The pairs on which this principle and another one each preferred an answer in both orders."""
    against: Counter[str] = field(default_factory=Counter)
    """Those of them on which they preferred different ones."""


def principles(run: Run) -> list[dict[str, Any]]:
    """Return a run's principles with their texts and what is remarkable of each, the most drawn first."""
    work: dict[str, _Work] = {}
    for step in run.values():
        if step.is_made and step.kind == "rows":
            _read(step, work)
    texts = _texts(run)
    for name in texts if work else ():
        _of(work, name)  # one that no row drew did nothing
    found = sorted(work.items(), key=lambda pair: -(pair[1].drawn + pair[1].judged))
    return [
        {
            "id": name, "text": texts.get(name, {}), "drawn": one.drawn, "revised": one.revised, "changed": one.changed,
            "dropped": dict(one.dropped.most_common()), "judged": one.judged, "flips": one.flips, "examples": one.examples,
            "remarks": list(_remarks(one)),
        }
        for name, one in found
    ]  # fmt: skip


def _remarks(one: _Work) -> Iterator[str]:
    """Yield what a constitution's author should know of a principle: that it does nothing, or pulls against another."""
    if not one.drawn + one.revised + one.judged:
        yield "never drawn"
    if one.revised and not one.changed:
        yield f"never changed an answer, of {one.revised:,} revised"
    for other, apart in sorted(one.against.items()):
        beside = one.beside[other]
        if apart - beside / 2 > sqrt(beside):  # two standard errors beyond what chance would do
            yield f"prefers the other answer than {other} on {apart:,} of {beside:,} pairs"


def _texts(run: Run) -> dict[str, dict[str, str]]:
    path = run.path / TEXTS
    kept = json.loads(path.read_text(encoding="utf-8")).values() if path.exists() else ()
    found = [text for text in kept if isinstance(text, Mapping) and "id" in text]
    return {text["id"]: {name: value for name, value in text.items() if isinstance(value, str) and value} for text in found}


def _read(step: Step, work: dict[str, _Work]) -> None:
    if step.op == "critique":
        for row in _rows(step.table, "principle"):
            _of(work, row["principle"]).drawn += 1
    elif step.op == "revise":
        for row in _rows(step.table, "uid", "principle", "response", "revision"):
            _revised(_of(work, row["principle"]), step.name, row)
    elif step.op == "judge":
        for row in _rows(step.table, *JUDGED):
            _judged(row, work)
    for row in _rows(step.dropped, "principle", "reason"):
        if row["principle"]:
            _of(work, row["principle"]).dropped[str(row["reason"])] += 1


def _rows(table: Table, *columns: str) -> Iterator[Row]:
    """Yield these columns of each row; nothing where the table lacks the first that tells of principles."""
    there = [name for name in columns if name in table.columns]
    if "principle" in there or "principles" in there:
        yield from table.select(there)


def _of(work: dict[str, _Work], principle: str | None) -> _Work:
    return work.setdefault(principle or "(none)", _Work())


def _revised(one: _Work, step: str, row: Row) -> None:
    before, after = row.get("response") or "", row.get("revision") or ""
    one.revised += 1
    if before.strip() == after.strip():
        return
    one.changed += 1
    if len(one.examples) < EXAMPLES:
        one.examples.append({"step": step, "uid": row["uid"], "before": before, "after": after})


def _judged(row: Row, work: dict[str, _Work]) -> None:
    favourites = _favourites(row)
    for name, best in favourites.items():
        one = _of(work, name)
        one.judged += 1
        one.flips += len(best) > 1
        for other, theirs in favourites.items():
            if other != name and len(best) == len(theirs) == 1:
                one.beside[other] += 1
                one.against[other] += best != theirs


def _better(share: float, first: int, second: int) -> set[int]:
    """Return which of two answers got more than half of a vote; neither of an equal one."""
    return set() if share == 0.5 else {first if share > 0.5 else second}


def _favourites(row: Row) -> dict[str, set[int]]:
    """Return, by principle, the answers that came out best in one order or another."""
    found: dict[str, set[int]] = {name: set() for name in row.get("principles") or ()}
    shares = row.get("p_a") or ()
    if len(shares) == 2 * len(found):  # one order, which is drawn, tells the place that was liked, and no answer
        for name, first, swapped in zip(found, shares[::2], shares[1::2], strict=True):
            found[name] |= _better(first, 0, 1) | _better(swapped, 1, 0)
    votes = row.get("votes") or "[]"
    for vote in json.loads(votes) if isinstance(votes, str) else votes:
        most = max(vote["shares"])
        if vote["shares"].count(most) == 1:
            found.setdefault(vote["principle"], set()).add(vote["shown"][vote["shares"].index(most)])
    return found
