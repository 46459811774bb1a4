"""Names for rows that are in a mixture several times, given as the rows come by: no table of names is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from caiflow.engine.rows.keys import among, found_at
from caiflow.operators.mixing.draws import ranks
from caiflow.operators.mixing.pool import DRAW, Draw, Pool

_NUMBERED = "#[0-9]+$"


class Naming:
    """Gives a uid that was there before `#1`, `#2`, ... after it, whichever no row has.

    `repeated` has the ranks in the draw, ascending, of uids that come several times, for each of which 12 bytes are held;
    `numbered` those of uids that end in a number, 8 bytes each. Should two texts have one rank, a number is passed over.
    """

    def __init__(self, repeated: NDArray[np.uint64], numbered: NDArray[np.uint64], seed: int) -> None:
        self._repeated, self._numbered, self._seed = repeated, numbered, seed
        self._last = np.full(len(repeated), -1, np.int32)

    def named(self, uids: pa.ChunkedArray) -> pa.Array:
        """Return the next rows' uids, each as no row before has it."""
        places, known = found_at(ranks(uids, self._seed, DRAW), self._repeated)
        found = uids.to_pylist()
        again: dict[int, list[int]] = {}
        for row in np.flatnonzero(known).tolist():
            place = int(places[row])
            if self._last[place] < 0:
                self._last[place] = 0
            else:
                again.setdefault(place, []).append(row)
        names = self._free({place: (found[rows[0]], len(rows)) for place, rows in again.items()})
        for place, rows in again.items():
            for row, name in zip(rows, names[place], strict=True):
                found[row] = name
        return pa.array(found, pa.string())

    def _free(self, wanted: Mapping[int, tuple[str, int]]) -> dict[int, list[str]]:
        """Return the next names of some uids that no row has, as many of each as are wanted, looked up together."""
        names: dict[int, list[str]] = {place: [] for place in wanted}
        while tried := [
            (place, f"{uid}#{self._last[place] + more}")
            for place, (uid, many) in wanted.items()
            for more in range(1, many - len(names[place]) + 1)
        ]:
            taken = among(ranks([name for _, name in tried], self._seed, DRAW), self._numbered)
            for (place, name), is_taken in zip(tried, taken.tolist(), strict=True):
                self._last[place] += 1
                if not is_taken:
                    names[place].append(name)
        return names


def naming_of(pools: Sequence[Pool], drawn: Sequence[Draw], seed: int) -> Naming | None:
    """Return what names the rows that are drawn of some pools; None where no uid comes twice."""
    ranked = np.concatenate([pool.ranks_of(draw) for pool, draw in zip(pools, drawn, strict=True)])
    ranked.sort()
    again = ranked[1:] == ranked[:-1]
    if not again.any():
        return None
    tables = (table for pool, draw in zip(pools, drawn, strict=True) for table in pool.read(draw, ["uid"]))
    found = (uids.filter(pc.match_substring_regex(uids, _NUMBERED)) for uids in (table.column("uid") for table in tables))
    numbered = np.concatenate([np.empty(0, np.uint64), *(ranks(uids, seed, DRAW) for uids in found)])
    return Naming(np.unique(ranked[1:][again]), np.unique(numbered), seed)
