"""What is wrong with what a step made: measures that operators declare, read as rows pass, and notes on those out of bounds.

Owns the words: a measure has a bound that is healthy; a reading is its value on one step's output; a note is a reading out of
bounds as a sentence, with rows to look at; a requirement is a spec's own bound on a reading. Knows no operator, runs nothing.
Readings don't depend on the order in which rows finish, nor on whether they came from the ledger.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from caiflow.engine.errors import WrongValue
from caiflow.engine.rows.columns import Row

BOUND = r"^\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)\s*(%?)\s*$"
SHOWN_UIDS = 3
"""Rows that a note names."""
ROWS = "rows"
"""The reading that every step with rows has: how many it made."""
DROPPED = "dropped"
"""The reading that every step with rows has: the share (0..1) of its rows that it left out."""

_Order = tuple[int, ...]


class Bound(NamedTuple):
    """A comparison with a number, such as `<= 0.1`."""

    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Read a bound; `10%` is 0.1.

        Raises:
            WrongValue: it isn't one.
        """
        found = re.match(BOUND, text)
        if found is None:
            raise WrongValue(f"a bound is a sign and a number, got {text!r}", "write one such as `< 0.1`, `<= 10%` or `>= 100`")
        sign, number, percent = found.groups()
        return cls(sign, float(number) / (100 if percent else 1))

    def holds(self, value: float) -> bool:
        """Return whether a value is within the bound."""
        if self.sign == "<":
            return value < self.limit
        if self.sign == ">":
            return value > self.limit
        return value <= self.limit if self.sign == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


class Passed(NamedTuple):
    """What became of one row of a step's input: whole rows, or the reason why there are none."""

    made: Sequence[Row] = ()
    dropped: str = ""


RowValue = Callable[[Passed], float | None]
"""A row's own value, 1 for a flaw and 0 for none, or None where the row says nothing."""
FigureValue = Callable[[Mapping[str, Any]], "float | Reading | None"]
"""A value out of a step's metrics, with `rows_in` and `rows_out` among them, or None where they don't say."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that may be wrong with a step's output.

    With `row` the reading is the mean over the rows that say something; with `figure` it comes out of the step's metrics, and
    `row` only finds rows to look at. `what`, `means` and `advice` are the note's sentence around the figure.
    """

    name: str
    healthy: str
    what: str
    means: str
    advice: str
    row: RowValue | None = None
    figure: FigureValue | None = None
    unit: str = ""
    """What follows a figure that isn't a share."""

    def message(self, reading: Reading) -> str:
        """Return the note's sentence."""
        if reading.of is not None:
            figure = f"{reading.flawed} of {reading.of} ({_percent(reading.value)})"
            if reading.of and reading.flawed is not None and abs(reading.value - reading.flawed / reading.of) > _ROUNDED:
                figure = f"{_percent(reading.value)}, too much of it in {reading.flawed} of {reading.of} rows"
        else:
            figure = f"{reading.value:.3g} {self.unit}" if self.unit else _percent(reading.value)
        return f"{self.what}: {figure}; {self.means}; {self.advice}{reading.first and f' (the first: {reading.first})'}"


_ROUNDED = 0.005
"""A share of rows isn't told apart from the mean of shares within each that rounds to the same percentage."""


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < abs(share) < 0.01 else f"{share:.0%}"


class Reading(NamedTuple):
    """A measure's value on one step's output; `flawed` of `of` rows have the flaw, where rows were counted."""

    value: float
    flawed: int | None = None
    of: int | None = None
    uids: Sequence[str] = ()
    first: str = ""
    """Where the flaw was seen first, where that can be said."""


Readings = Mapping[str, Reading]


@dataclass(slots=True)
class Sum:
    """What a measure has come to over some rows."""

    total: float = 0.0
    of: int = 0
    count: int = 0
    first: list[tuple[_Order, str]] = field(default_factory=list)
    """The first rows with the flaw, in the order of the input."""

    def add(self, order: _Order, uid: str, value: float, healthy: Bound) -> None:
        """Take in one row's value."""
        self.total += value
        self.of += 1
        if not healthy.holds(value):
            self.count += 1
            bisect.insort(self.first, (order, uid))
            del self.first[SHOWN_UIDS:]

    def join(self, other: Sum) -> Sum:
        """Return the same over both lots of rows."""
        first = sorted([*self.first, *other.first])[:SHOWN_UIDS]
        return Sum(self.total + other.total, self.of + other.of, self.count + other.count, first)


class Meter:
    """Takes a step's rows as they pass and gives the readings of its measures; it may go on from what `sums` came to."""

    def __init__(self, measures: Iterable[Measure], sums: Mapping[str, Sum] | None = None) -> None:
        self._measures = [(m, Bound.parse(m.healthy)) for m in measures]
        self.sums = {m.name: (sums or {}).get(m.name) or Sum() for m, _ in self._measures}

    def add(self, order: _Order, uid: str, passed: Passed) -> None:
        """Take in one row of the input; `order` is its place there."""
        for measure, healthy in self._measures:
            value = None if measure.row is None else measure.row(passed)
            if value is not None:
                self.sums[measure.name].add(order, uid, value, healthy)

    def readings(self, metrics: Mapping[str, Any], uids: Mapping[str, Sequence[str]] | None = None) -> dict[str, Reading]:
        """Return the readings, given the step's metrics and the rows that it names itself."""
        found = {}
        for measure, _ in self._measures:
            total = self.sums[measure.name]
            seen = tuple((uids or {}).get(measure.name, [uid for _, uid in total.first]))[:SHOWN_UIDS]
            if measure.figure is not None:
                value = measure.figure(metrics)
                if value is not None:
                    read = value if isinstance(value, Reading) else Reading(value)
                    found[measure.name] = read._replace(value=round(read.value, 6), uids=seen)
            elif total.of:
                found[measure.name] = Reading(round(total.total / total.of, 6), total.count, total.of, seen)
        return found


NONE_LEFT = Measure(
    "no_rows", "<= 0", "rows left", "what follows has nothing to work on", "look at what was dropped, and loosen that rule",
    figure=lambda metrics: float(not metrics["rows_out"]) if metrics.get("rows_in") and "rows_out" in metrics else None,
)  # fmt: skip
"""What can be wrong with every step that makes rows of rows."""


def notes(measures: Iterable[Measure], readings: Readings) -> list[dict[str, Any]]:
    """Return the readings that are out of bounds, in the form run.json keeps (the step's name is added there)."""
    found = []
    for measure in measures:
        reading, healthy = readings.get(measure.name), Bound.parse(measure.healthy)
        if reading is not None and not healthy.holds(reading.value):
            found.append(
                {
                    "measure": measure.name,
                    "value": reading.value,
                    "threshold": healthy.limit,
                    "message": measure.message(reading),
                    "uids": list(reading.uids),
                }
            )
    return found


def unmet(require: Mapping[str, str], values: Mapping[str, float]) -> list[str]:
    """Return what a step's requirements find wrong with its readings' values, each in a few words."""
    found = []
    for name, text in require.items():
        bound, value = Bound.parse(text), values.get(name)
        if value is None:
            found.append(f"{name} can't be measured here, required {bound}")
        elif not bound.holds(value):
            found.append(f"{name} is {value:.6g}, required {bound}")
    return found
