"""Passing over a source's rows twice, parsed once: kept in memory or beside the output, some of them drawn, and written.

Never reads records.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from caiflow.engine.errors import WrongValue
from caiflow.operators.formats.params import Split
from caiflow.operators.formats.survey import BadRow, Block, Row, Survey
from caiflow.operators.mixing.draws import fraction

if TYPE_CHECKING:
    import pyarrow as pa

    from caiflow.engine.rows.folder import RowsWriter

_IN_MEMORY = 20_000


class Drawn:
    """The uids of a sample of `size` among those offered; it depends on the seed and the uids alone."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._lowest: list[float] = []  # a heap of the lowest ranks, negated

    def offer(self, uid: str) -> None:
        """Take one more uid into the draw."""
        if len(self._lowest) < self._size:
            heapq.heappush(self._lowest, -self._rank(uid))
        else:
            heapq.heappushpop(self._lowest, -self._rank(uid))

    def __contains__(self, uid: str) -> bool:
        return bool(self._lowest) and self._rank(uid) <= -self._lowest[0]

    def _rank(self, uid: str) -> float:
        return fraction("sample", self._seed, uid)


def side(row: Row, split: Split) -> Literal["train", "test"]:
    """Return the side of the division that a row is on; texts that differ only in case and spaces are on the same one.

    Raises:
        ValueError: the row has no such column.
    """
    if row.get(split.column) is None:
        raise WrongValue(f"split by `{split.by}`: the row has none", f"it has {', '.join(row)}")
    value = row[split.column]
    if split.by == "opening":
        value = [next(turn for turn in value if turn["role"] == "user")]
    text = " ".join(_said(value).split()).casefold()
    return "test" if fraction(split.seed, text) < split.test else "train"


def _said(value: Any) -> str:
    """Return what is said in a conversation, whoever says it; of other values their JSON text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return " ".join(turn["content"] for turn in value)
    return json.dumps(value, sort_keys=True, default=str)


class Piece(NamedTuple):
    """Some rows, and the bad ones among them, each after so many of the good ones."""

    rows: Block
    bad: Sequence[tuple[int, BadRow]]

    def drawn(self, drawn: Drawn, most: int | None) -> Piece:
        """Return what is of a sample, up to `most` rows, and the bad ones before the last of these."""
        places = [place for place, uid in enumerate(self.rows.uids()) if uid in drawn]
        before = self.bad
        if most is not None and len(places) >= most:
            places = places[:most]
            before = [(after, row) for after, row in self.bad if after <= places[-1]]
        return Piece(self.rows.taken(places), [(bisect_left(places, after), row) for after, row in before])


class Pieces:
    """Pieces of a source in order, as often as wanted.

    The first are kept in memory; those after them in a file without a name in `folder`, which ends with this process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: list[Piece] = []
        self._room = _IN_MEMORY
        self._file: IO[bytes] | None = None

    def add(self, piece: Piece) -> None:
        """Take one more."""
        if self._room > 0:
            self._room -= piece.rows.num_rows + len(piece.bad)
            self._first.append(piece)
            return
        import pickle  # few sources are this long

        self._file = self._file or self._opened()
        pickle.dump(piece, self._file, pickle.HIGHEST_PROTOCOL)

    def __iter__(self) -> Iterator[Piece]:
        yield from self._first
        if self._file is None:
            return
        import pickle

        end = self._file.tell()
        self._file.seek(0)
        while self._file.tell() < end:
            yield pickle.load(self._file)

    def _opened(self) -> IO[bytes]:
        import tempfile

        self._folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)  # it lives as long as this object


def sampled(pieces: Iterable[Piece], drawn: Drawn, most: int | None) -> Iterator[Piece]:
    """Yield what is of a sample, up to `most` rows."""
    for piece in pieces:
        chosen = piece.drawn(drawn, most)
        yield chosen
        if most is not None:
            most -= chosen.rows.num_rows
            if not most:
                return


def written(pieces: Iterable[Piece], survey: Survey, out: RowsWriter) -> dict[str, int]:
    """Write rows and set bad ones aside; return how many of each."""
    counts = {"rows": 0, "bad_rows": 0}
    for rows, bad in pieces:
        if rows.num_rows:
            out.write(survey.table(rows))
        if bad:
            out.drop(_bad_table([row for _, row in bad]), [row.reason for _, row in bad])
        counts["rows"] += rows.num_rows
        counts["bad_rows"] += len(bad)
    return counts


def _bad_table(bad: list[BadRow]) -> pa.Table:
    import pyarrow as pa

    uids = [hashlib.blake2b(row.place.encode(), digest_size=10).hexdigest() for row in bad]
    return pa.table({"uid": uids, "place": [row.place for row in bad], "text": [row.text for row in bad]})
