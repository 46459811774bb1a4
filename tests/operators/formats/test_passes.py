"""Rows passed over twice: all come back in order as often as wanted, however many there are, and nothing of them stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caiflow.operators.formats import passes
from caiflow.operators.formats.passes import Drawn, Piece, Pieces, sampled
from caiflow.operators.formats.survey import BadRow, Survey, by_column


def pieces_of(size: int, folder: Path) -> tuple[Pieces, Survey]:
    """Return rows in threes, of which each tenth is a bad one."""
    every = [
        {"uid": str(n), "n": n, "any": [n] if n % 2 else n} if n % 10 else BadRow(f"a:{n}", "no", "text") for n in range(size)
    ]
    survey, pieces = Survey(), Pieces(folder)
    for start in range(0, size, 3):
        found = by_column(every[start : start + 3])
        pieces.add(Piece(survey.see(found), found.bad))
    return pieces, survey


def told(pieces: Any, survey: Survey) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        uids = piece.rows.uids()
        for lost, (place, bad) in enumerate(piece.bad):
            uids.insert(place + lost, bad.place)
        found += uids
        kept = survey.table(piece.rows).to_pylist() if uids else []
        assert [row["any"] for row in kept] == [f"[{row['uid']}]" if int(row["uid"]) % 2 else row["uid"] for row in kept]
    return found


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 11, 12, 13, 60])
def test_every_row_comes_back_as_often_as_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(passes, "_IN_MEMORY", 8)
    pieces, survey = pieces_of(size, tmp_path / "out")
    wanted = [str(n) if n % 10 else f"a:{n}" for n in range(size)]
    assert told(pieces, survey) == told(pieces, survey) == wanted
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("most", [None, 1, 2, 5, 9, 30])
def test_a_sample_up_to_a_limit_has_the_bad_rows_before_its_last(tmp_path: Path, most: int | None) -> None:
    pieces, survey = pieces_of(60, tmp_path)
    drawn = Drawn(9, 3)
    for piece in pieces:
        for uid in piece.rows.uids():
            drawn.offer(uid)
    wanted: list[str] = []
    for n in range(60):
        if n % 10 == 0 or str(n) in drawn:
            wanted.append(str(n) if n % 10 else f"a:{n}")
        if most is not None and sum(name.isdecimal() for name in wanted) == most:
            break
    assert told(sampled(pieces, drawn, most), survey) == wanted
