"""Names for rows that are in a mixture several times, given as the rows come by: no table of names is held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from caiflow.engine.rows.keys import found_at
from caiflow.operators.mixing.draws import ranks
from caiflow.operators.mixing.pool import DRAW, Draw, Pool

_NUMBERED = "#[0-9]+$"


class Naming:
    """Gives a uid that was there before `#1`, `#2`, ... after it, whichever no row has; holds 12 bytes for each such uid.

    `repeated` has the ranks in the draw, ascending, of uids that come several times; `numbered` those that end in a number.
    """

    def __init__(self, repeated: NDArray[np.uint64], numbered: Iterable[str], seed: int) -> None:
        self._repeated, self._seed = repeated, seed
        self._last = np.full(len(repeated), -1, np.int32)
        self._numbered = frozenset(numbered)

    def named(self, uids: pa.ChunkedArray) -> pa.Array:
        """Return the next rows' uids, each as no row before has it."""
        places, known = found_at(ranks(uids, self._seed, DRAW), self._repeated)
        found = uids.to_pylist()
        for row in np.flatnonzero(known).tolist():
            place = places[row]
            self._last[place] += 1
            if self._last[place]:
                found[row] = self._free(found[row], int(place))
        return pa.array(found, pa.string())

    def _free(self, uid: str, place: int) -> str:
        while (name := f"{uid}#{self._last[place]}") in self._numbered:
            self._last[place] += 1
        return name


def naming_of(pools: Sequence[Pool], drawn: Sequence[Draw], seed: int) -> Naming | None:
    """Return what names the rows that are drawn of some pools; None where no uid comes twice."""
    ranked = np.concatenate([pool.ranks_of(draw) for pool, draw in zip(pools, drawn, strict=True)])
    ranked.sort()
    again = ranked[1:] == ranked[:-1]
    if not again.any():
        return None
    tables = (table for pool, draw in zip(pools, drawn, strict=True) for table in pool.read(draw, ["uid"]))
    found = (uids.filter(pc.match_substring_regex(uids, _NUMBERED)).to_pylist() for uids in (t.column("uid") for t in tables))
    return Naming(np.unique(ranked[1:][again]), chain.from_iterable(found), seed)
