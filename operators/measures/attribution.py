"""What each principle did: the answers, words and grades that revisions under it changed, the labels and preferences it moved.

Counts rows of a step, and tells means with their 95% intervals. Reads no table and asks no model.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from caiflow.operators.measures.statistics import paired_change, wilson
from caiflow.operators.measures.texts import words

Figures = dict[str, dict[str, Any]]


def words_changed(before: str, after: str) -> float:
    """Return the share (0..1) of the words of both texts that the other one hasn't; each counts as often as it stands."""
    old, new = Counter(words(before)), Counter(words(after))
    both = old.total() + new.total()
    return 1 - 2 * (old & new).total() / both if both else 0.0


class Revised:
    """Takes in answers before and after a revision, by the principle that asked for it."""

    def __init__(self) -> None:
        self._changed: Counter[str] = Counter()
        self._words: dict[str, array[float]] = defaultdict(_shares)

    def see(self, principle: str, before: str, after: str) -> None:
        """Take in one revision."""
        self._changed[principle] += before.strip() != after.strip()
        self._words[principle].append(words_changed(before, after))

    def join(self, later: Revised) -> None:
        """Take in what was taken in of later rows: share by share, since their sum in the last place goes by the order."""
        self._changed.update(later._changed)
        for principle, shares in later._words.items():
            self._words[principle].extend(shares)

    def figures(self) -> Figures:
        """Return, by principle, the rate of answers changed and the mean share of words changed.

        Wilson's interval is too wide, if anything, for the mean of shares, which vary less than hits and misses.
        """
        return {
            name: {
                "changed": wilson(self._changed[name], len(shares))._asdict(),
                "words_changed": wilson(sum(shares), len(shares))._asdict(),
            }
            for name, shares in sorted(self._words.items())
        }


def _shares() -> array[float]:
    return array("d")


class Graded:
    """Takes in an answer's grades before and after a revision, by the principle that asked for it; `span` has their ends."""

    def __init__(self, span: tuple[float, float]) -> None:
        self._width = span[1] - span[0]
        self._moved: dict[str, list[float]] = defaultdict(list)

    def see(self, principle: str, before: float, after: float) -> None:
        """Take in one revision."""
        self._moved[principle].append((after - before) / self._width)

    def figures(self) -> Figures:
        """Return, by principle, by how much revisions under it moved the grade, in the grade's own unit."""
        return {name: {"grade_moved": self._wide(paired_change(moved))} for name, moved in sorted(self._moved.items())}

    def _wide(self, share: dict[str, Any]) -> dict[str, Any]:
        return {key: value if key == "n" else value * self._width for key, value in share.items()}


class Judged:
    """Takes in the votes on pairs of answers, by the principle that they were cast under.

    What a principle did to a pair shows beside the same pair without its votes: pairs judged under one alone tell nothing.
    """

    def __init__(self) -> None:
        self._turned: dict[str, list[bool]] = defaultdict(list)
        self._moved: dict[str, list[float]] = defaultdict(list)

    def see(self, principles: Sequence[str], p_a: Sequence[float], *, swap: bool) -> None:
        """Take in one pair: what the option shown first got in each vote, by principle; with `swap` in both orders."""
        orders = 2 if swap else 1
        if len(principles) < 2 or len(p_a) != orders * len(principles):
            return
        first = [1 - share if swap and place % 2 else share for place, share in enumerate(p_a)]
        votes = {name: fmean(first[orders * place : orders * (place + 1)]) for place, name in enumerate(principles)}
        whole = fmean(votes.values())
        for name, vote in votes.items():
            without = (whole * len(votes) - vote) / (len(votes) - 1)
            self._turned[name].append((whole > 0.5) != (without > 0.5) and 0.5 not in (whole, without))
            self._moved[name].append(whole - without if whole > 0.5 else without - whole)

    def figures(self) -> Figures:
        """Return, by principle, the rate of labels that it turned, and by how much it moved the probability of what was chosen.

        That is below 0 where it spoke against it on the whole.
        """
        return {
            name: {
                "labels_turned": wilson(sum(seen), len(seen))._asdict(),
                "preference_moved": paired_change(self._moved[name]),
            }
            for name, seen in sorted(self._turned.items())
        }
