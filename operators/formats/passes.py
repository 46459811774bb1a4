"""Passing over a source's rows twice, parsed once: kept in memory or beside the output, and a sample of them drawn on the way.

Never reads records.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from os import SEEK_END
from pathlib import Path
from typing import IO

from caiflow.operators.formats.rows import BadRow, Row
from caiflow.operators.mixing.draws import fraction

_IN_MEMORY = 20_000
_BLOCK = 2048


class Drawn:
    """The uids of a sample of `size` among those offered, all where it is None; it depends on the seed and the uids alone."""

    def __init__(self, size: int | None, seed: int) -> None:
        self._size, self._seed = size, seed
        self._lowest: list[float] = []  # a heap of the lowest ranks, negated

    def offer(self, uid: str) -> None:
        """Take one more uid into the draw."""
        if self._size is None:
            return
        if len(self._lowest) < self._size:
            heapq.heappush(self._lowest, -self._rank(uid))
        else:
            heapq.heappushpop(self._lowest, -self._rank(uid))

    def __contains__(self, uid: str) -> bool:
        return self._size is None or (bool(self._lowest) and self._rank(uid) <= -self._lowest[0])

    def _rank(self, uid: str) -> float:
        return fraction("sample", self._seed, uid)


class Replay:
    """The rows that `rows` yields, as often as wanted though it is asked for each once, and for none that nobody wants.

    The first are kept in memory; those after them in a file without a name in `folder`, which ends with this process.
    """

    def __init__(self, rows: Iterator[Row | BadRow], folder: Path) -> None:
        self._rows = rows
        self._folder = folder
        self._first: list[Row | BadRow] = []
        self._block: list[Row | BadRow] = []
        self._file: IO[bytes] | None = None

    def __iter__(self) -> Iterator[Row | BadRow]:
        yield from self._first
        yield from self._filed()
        yield from self._block
        for row in self._rows:
            self._keep(row)
            yield row

    def _keep(self, row: Row | BadRow) -> None:
        if len(self._first) < _IN_MEMORY:
            self._first.append(row)
            return
        self._block.append(row)
        if len(self._block) == _BLOCK:
            self._write(self._block)
            self._block = []

    def _write(self, block: list[Row | BadRow]) -> None:
        import pickle  # few sources are this long

        self._file = self._file or self._opened()
        self._file.seek(0, SEEK_END)
        pickle.dump(block, self._file, pickle.HIGHEST_PROTOCOL)

    def _opened(self) -> IO[bytes]:
        import tempfile

        self._folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)  # it lives as long as this object

    def _filed(self) -> Iterator[Row | BadRow]:
        if self._file is None:
            return
        import pickle

        end, place = self._file.seek(0, SEEK_END), 0
        while place < end:
            self._file.seek(place)
            block = pickle.load(self._file)
            place = self._file.tell()
            yield from block
