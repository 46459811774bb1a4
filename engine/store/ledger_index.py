"""Where each key's last record is: a compact index in memory, 24 bytes a record. Never reads a file."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KEY = struct.Struct(">QQ")
_OFFSET_BITS = 44  # 16 TiB a segment, a million segments
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_FEW = 256  # what joins the sorted index one by one
_FRESH = 65536  # new records kept in a dict before they join the sorted index
_NOWHERE = (1 << 64) - 1


class _Run:
    """Records sorted by key: the two halves of each key as numbers, and its place; 24 bytes a record."""

    def __init__(self, high: NDArray[np.uint64], low: NDArray[np.uint64], places: NDArray[np.uint64]) -> None:
        """Sort; of equal keys only the last counts."""
        import numpy as np

        order = np.argsort(high, kind="stable")  # linear where two sorted runs are merged
        if np.any(high[order][1:] == high[order][:-1]):
            order = np.lexsort((low, high))  # stable too: the last of equal keys stays the last
        high, low = high[order], low[order]
        last = np.ones(len(order), dtype=bool)
        last[:-1] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        self.high, self.low, self.places = high[last], low[last], places[order][last]
        # plain ints out of a memoryview: five times faster to bisect than numpy scalars
        self._views = (memoryview(self.high), memoryview(self.low), memoryview(self.places))

    def __len__(self) -> int:
        return len(self.places)

    def find(self, high: int, low: int) -> int | None:
        """Return the place of a key, if it is here."""
        highs, lows, places = self._views
        at = bisect_left(highs, high)
        if at == len(highs) or highs[at] != high:
            return None
        if lows[at] != low:
            at = bisect_left(lows, low, at, bisect_right(highs, high, at))
        return places[at] if at < len(highs) and highs[at] == high and lows[at] == low else None

    def find_many(self, high: NDArray[np.uint64], low: NDArray[np.uint64], places: NDArray[np.uint64]) -> None:
        """Enter the place of each key that is here into `places`."""
        import numpy as np

        at = np.minimum(np.searchsorted(self.high, high), len(self) - 1)
        begins = self.high[at] == high
        here = begins & (self.low[at] == low)
        places[here] = self.places[at[here]]
        for further in np.flatnonzero(begins & ~here).tolist():  # another key with the same first half comes before it
            if (place := self.find(int(high[further]), int(low[further]))) is not None:
                places[further] = place


class Index:
    """Where each key's last record is: a dict of fresh ones over few sorted runs, merged as they grow."""

    def __init__(self) -> None:
        self._fresh: dict[bytes, int] = {}
        self._runs: list[_Run] = []

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Return (segment number, offset) of a key's last record, if any."""
        place = self._fresh.get(key)
        if place is None:
            high, low = _KEY.unpack(key)
            place = next((found for run in reversed(self._runs) if (found := run.find(high, low)) is not None), None)
        return None if place is None else (place >> _OFFSET_BITS, place & _OFFSET_MASK)

    def find_many(self, keys: Sequence[bytes]) -> list[tuple[int, int, int]]:
        """Return (segment number, offset, place in `keys`) of all that are known, in the order in which they stand in files."""
        import numpy as np

        halves = np.frombuffer(b"".join(keys), ">u8").astype(np.uint64).reshape(-1, 2)
        found = np.full(len(keys), _NOWHERE, np.uint64)
        for run in self._runs:
            run.find_many(halves[:, 0], halves[:, 1], found)
        for at, key in enumerate(keys) if self._fresh else ():
            if (place := self._fresh.get(key)) is not None:
                found[at] = place
        order = np.argsort(found)
        order = order[found[order] != _NOWHERE]
        places = found[order]
        columns = (places >> np.uint64(_OFFSET_BITS), places & np.uint64(_OFFSET_MASK), order)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def of(self, segment: int) -> tuple[bytes, array[int]]:
        """Return the keys, joined, whose last record is in a segment, and the records' offsets."""
        import numpy as np

        self._merge(all_runs=True)
        if not self._runs:
            return b"", array("Q")
        run = self._runs[0]
        here = run.places >> np.uint64(_OFFSET_BITS) == segment
        keys = np.column_stack((run.high[here], run.low[here])).astype(">u8").tobytes()
        return keys, array("Q", (run.places[here] & np.uint64(_OFFSET_MASK)).tobytes())

    def add(self, key: bytes, segment: int, offset: int) -> None:
        """Enter one record."""
        self._fresh[key] = segment << _OFFSET_BITS | offset
        if len(self._fresh) >= _FRESH:
            self._settle()

    def load(self, segment: int, keys: bytes, offsets: array[int]) -> None:
        """Enter many records of one segment, in order of age."""
        import numpy as np

        if len(offsets) < _FEW:
            for place, offset in enumerate(offsets):
                self.add(keys[_KEY.size * place : _KEY.size * (place + 1)], segment, offset)
        else:
            self._settle()
            self._push(keys, np.frombuffer(offsets, np.uint64) | np.uint64(segment << _OFFSET_BITS))

    def keys(self) -> Iterator[bytes]:
        """Return all keys, sorted."""
        self._merge(all_runs=True)
        run = self._runs[0] if self._runs else None
        return (_KEY.pack(high, low) for high, low in zip(*run._views[:2], strict=True)) if run else iter(())

    def count(self) -> int:
        """Return the number of keys."""
        self._merge(all_runs=True)
        return sum(map(len, self._runs))

    def _settle(self) -> None:
        import numpy as np

        if self._fresh:
            fresh, self._fresh = self._fresh, {}
            self._push(b"".join(fresh), np.fromiter(fresh.values(), np.uint64, len(fresh)))

    def _push(self, keys: bytes, places: NDArray[np.uint64]) -> None:
        import numpy as np

        halves = np.frombuffer(keys, ">u8").astype(np.uint64).reshape(-1, 2)
        self._runs.append(_Run(halves[:, 0], halves[:, 1], places))
        self._merge()

    def _merge(self, all_runs: bool = False) -> None:
        """Merge neighbours until each run is at least twice its successor, so that few remain."""
        import numpy as np

        if all_runs:
            self._settle()
        while len(self._runs) > 1 and (all_runs or len(self._runs[-2]) < 2 * len(self._runs[-1])):
            new, old = self._runs.pop(), self._runs.pop()
            pairs = ((old.high, new.high), (old.low, new.low), (old.places, new.places))
            self._runs.append(_Run(*(np.concatenate(pair) for pair in pairs)))
