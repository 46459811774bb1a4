"""Seeded choices that depend on rows' uids alone: ranks to sample and shuffle by, and sides of a split.

Equal inputs give equal choices on every machine and in every version of numpy; nothing here holds state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_AT_ONCE = 1 << 16


def fraction(*parts: object) -> float:
    """Return a number in [0, 1) that is as good as random and always the same for the same parts."""
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64


def ranks(uids: Sequence[str] | pa.Array, seed: int, purpose: str) -> NDArray[np.uint64]:
    """Return one 64-bit rank per uid [N]; the rows with the lowest ranks are a sample, and their order is a shuffle.

    Different purposes give independent ranks. About 0.1 us per uid, and little memory beside the ranks.
    """
    import numpy as np

    salt = int.from_bytes(hashlib.blake2b(f"{purpose}\x1f{seed}".encode(), digest_size=8).digest(), "little")
    found = [_ranks(uids[start : start + _AT_ONCE], salt) for start in range(0, len(uids), _AT_ONCE)]
    return np.concatenate([np.empty(0, np.uint64), *found])


def _ranks(given: Sequence[str] | pa.Array, salt: int) -> NDArray[np.uint64]:
    import numpy as np

    uids: Sequence[str] = given.to_pylist() if hasattr(given, "to_pylist") else given
    texts = [uid.encode("utf-8", "surrogatepass") for uid in uids]
    encoded = np.asarray(texts)
    width = -(-encoded.itemsize // 8)
    words = encoded.astype(f"S{8 * width}").view("<u8").reshape(len(uids), width)
    state = np.full(len(uids), salt, np.uint64)
    sizes = np.strings.str_len(encoded)
    for column in range(width):  # words past a uid's end don't count: its rank is its own, whatever the others' lengths
        state = np.where(sizes > 8 * column, _mix(state ^ words[:, column]), state)
    whole = np.fromiter(map(len, texts), np.uint64, len(texts))
    return _mix(np.where(sizes < whole, _mix(state ^ whole), state))  # arrays lose the NULs that a text ends with


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what the finaliser of splitmix64 (Steele et al. 2014) makes of each element."""
    import numpy as np

    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
