"""What figures about finished rows are made of: taken in row by row, or of lots of rows that were taken in elsewhere.

Owns the shape alone; which figures there are is each operator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

from caiflow.engine.rows.columns import Row


class Gathering(Protocol):
    """What is known of some rows; it pickles, and comes to the same however the rows were divided."""

    def see(self, row: Row) -> None:
        """Take in one row, behind all before it."""

    def join(self, later: Self) -> None:
        """Take in what was gathered of rows behind all before them."""

    def figures(self) -> Mapping[str, Any]:
        """Return figures about all that was taken in; none about nothing."""


def seen(gathering: Gathering, rows: Iterable[Row]) -> Gathering:
    """Have rows taken in; return what took them in."""
    for row in rows:
        gathering.see(row)
    return gathering
