"""64-bit keys of rows in sorted arrays: 8 bytes each, where a set of Python's takes some sixty. Knows nothing of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Keys = NDArray[np.uint64]


def found_at(keys: Keys, known: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each key [N] a place in `known`, which ascends, and whether the key is there."""
    import numpy as np

    if not len(known):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return places, known[places] == keys


def among(keys: Keys, known: Keys) -> NDArray[np.bool_]:
    """Return whether each key [N] is in `known`, which ascends."""
    return found_at(keys, known)[1]
