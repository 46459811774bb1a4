"""The table of what trials of clusters measured: a line for each row, whether it was tried or not, each figure once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.figures import MARK, ROWS, found, keep, lines


def test_each_row_says_what_was_measured_and_what_is_to_be_reached(tmp_path: Path) -> None:
    call = [(MARK, ["capped", "100 calls"]), ("another property", 1)]
    measured = found([call, call, [], [(MARK, ["training", "12 s"]), (MARK, ["training", "13 s"])]])
    told = lines(measured)
    assert len(told) == len(ROWS)
    assert "`max_calls: 100` with 4 replicas and 3 shards: 100 calls (to reach: 100 calls)" in told
    assert sum("not tried here" in line for line in told) == len(ROWS) - 2
    keep(measured, tmp_path / "build" / "cluster.json")
    kept = json.loads((tmp_path / "build" / "cluster.json").read_text())
    assert [row["measured"] for row in kept if row["measured"]] == [["12 s", "13 s"], ["100 calls"]]


def test_a_trial_notes_figures_of_rows_there_are(figure: Callable[[str, str], None]) -> None:
    with pytest.raises(AssertionError):
        figure("no row", "1")
