"""Rows passed over twice: each is asked for once, however many there are, and none that nobody wants."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from caiflow.operators.formats import passes
from caiflow.operators.formats.passes import Replay
from caiflow.operators.formats.rows import BadRow, Row


class Source:
    """Yields so many rows, each tenth a bad one, and counts those that were asked for."""

    def __init__(self, size: int) -> None:
        self.asked = 0
        self.every: list[Row | BadRow] = [
            {"uid": str(n), "prompt": [{"role": "user", "content": f"é{n}"}]} if n % 10 else BadRow(f"a:{n}", "no", "text")
            for n in range(size)
        ]

    def rows(self) -> Iterator[Row | BadRow]:
        for row in self.every:
            self.asked += 1
            yield row


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 11, 12, 13, 60])
@pytest.mark.parametrize("first", [0, 5, 9, 30, 100])
def test_every_row_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, first: int) -> None:
    monkeypatch.setattr(passes, "_IN_MEMORY", 8)
    monkeypatch.setattr(passes, "_BLOCK", 3)
    source = Source(size)
    replay = Replay(source.rows(), tmp_path / "out")
    assert list(islice(replay, first)) == source.every[:first]
    assert source.asked == min(size, first)
    assert list(replay) == source.every
    assert list(islice(replay, first)) == source.every[:first]
    assert list(replay) == source.every
    assert source.asked == size
    assert not list((tmp_path / "out").glob("*"))
