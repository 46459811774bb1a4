"""Whether new answers come from the same distribution as kept ones to the same questions: a paired test on words and letters.

Owns the test alone: asks nothing and reads no run. A seed makes it deterministic.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log1p
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_FLIPS = 999
_COMMON = 5
"""What occurs more or less often in fewer pairs than this says nothing of the whole."""
ALARM = 0.05
"""The highest share of false alarms over all steps of one replay."""


class Said(NamedTuple):
    """What one row of a step says: its texts as one, and its numbers, as many for each row."""

    text: str
    numbers: tuple[float, ...] = ()


def drift(kept: Sequence[Said], new: Sequence[Said], seed: int = 0) -> float:
    """Return the probability of a difference as great as that between kept and new answers where one model gave both.

    One model's two answers to a question may change places, so the null distribution is that of random signs of the pairs'
    differences: its level holds for any number of pairs, whatever questions differ in. Differences are looked for in several
    ways (words, pairs of words, letters by threes, lengths and numbers): in each, the squared distance of the means of its
    features, in their standard deviations (a maximum mean discrepancy under a linear kernel). The least of their levels is held
    against the least ones of the random signs. Equal pairs say nothing: 1 where all are equal.

    Source: Gretton et al., A kernel two-sample test, JMLR 13 (2012); for signs of pairs Fisher, The design of experiments
    (1935), section 21; for the least of several levels Westfall and Young, Resampling-based multiple testing (1993).
    """
    import numpy as np

    pairs = [(a, b) for a, b in zip(kept, new, strict=True) if a != b]
    if not pairs:
        return 1.0
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(1 + _FLIPS, len(pairs)))
    signs[0] = 1.0
    ways = [found for way in (_words, _word_pairs, _letters) if (found := _counted(pairs, way)).size]
    sizes = [((signs @ way) ** 2).sum(axis=1) for way in (*ways, *_numbers(pairs).T[:, :, None])]
    levels = np.array([_levels(size) for size in sizes]).min(axis=0)
    return float((levels <= levels[0] + 1e-12).mean())


def _levels(sizes: np.ndarray) -> np.ndarray:
    """Return for each size the share of sizes that are as great, rounding apart."""
    import numpy as np

    rounded = np.round(sizes, 9)
    shares: np.ndarray = 1 - np.searchsorted(np.sort(rounded), rounded, side="left") / len(rounded)
    return shares


def drifted(p_values: Sequence[float], level: float = ALARM) -> list[bool]:
    """Tell of each step whether it drifted, so that any false alarm among them has at most this probability.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979).
    """
    found, left = [False] * len(p_values), len(p_values)
    for place in sorted(range(len(p_values)), key=p_values.__getitem__):
        if p_values[place] > level / left:
            break
        found[place], left = True, left - 1
    return found


def _counted(pairs: Sequence[tuple[Said, Said]], way: Callable[[list[str]], list[str]]) -> np.ndarray:
    """Return the differences in how often what is common occurs, [N, D] float64, each column of length 1."""
    import numpy as np

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for place, (one, other) in enumerate(pairs):
        counts = Counter(way(_split(one.text)))
        counts.subtract(way(_split(other.text)))
        for gram, number in counts.items():
            if number:
                found[gram][place] = number
    least = max(_COMMON, len(pairs) // 50)
    columns = [column for column in found.values() if len(column) >= least]
    matrix = np.zeros((len(pairs), len(columns)))
    for number, column in enumerate(columns):
        matrix[list(column), number] = list(column.values())
    matrix /= np.linalg.norm(matrix, axis=0)
    return matrix


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def _words(words: list[str]) -> list[str]:
    return words


def _word_pairs(words: list[str]) -> list[str]:
    return [" ".join(two) for two in pairwise(words)]


def _letters(words: list[str]) -> list[str]:
    text = " ".join(words)
    return [text[i : i + 3] for i in range(len(text) - 2)]


def _numbers(pairs: Sequence[tuple[Said, Said]]) -> np.ndarray:
    """Return the differences in length and in numbers, [N, D] float64, each column of length 1 where any differs."""
    import numpy as np

    one, other = (np.array([[log1p(len(said.text)), *said.numbers] for said in side]) for side in zip(*pairs, strict=True))
    length = np.linalg.norm(one - other, axis=0)
    found: np.ndarray = (one - other) / np.where(length == 0, 1.0, length)
    return found
