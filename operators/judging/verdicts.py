"""A judge's votes as preference pairs, as reasons to leave one out, and as figures about the judge.

Owns what `judge` makes of votes once they are cast; asks no model. Votes on lists are read from the rows' `votes`, those on
pairs from `p_a`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.listwise import Ranking
from caiflow.operators.judging.options import MOST_OPTIONS
from caiflow.operators.judging.pairwise import Verdict
from caiflow.operators.judging.prompts import LETTERS
from caiflow.operators.measures.probability import binary_entropy

TIE = "tie"
TIE_FIRST = "tie: the first option in every order"
TIE_SECOND = "tie: the second option in every order"
TIE_EQUAL = "tie: equal answers"
UNPARSABLE = "unparsable"


class Stuck(NamedTuple):
    """Where a judge's votes were in every order: the place of the option as shown, from 0, among so many."""

    place: int
    options: int


def _list_reason(stuck: Stuck) -> str:
    return f"tie: option {LETTERS[stuck.place]} of {stuck.options} in every order"


STUCK: Mapping[str, Stuck] = {
    TIE_FIRST: Stuck(0, 2),
    TIE_SECOND: Stuck(1, 2),
    **{_list_reason(stuck): stuck for n in range(2, MOST_OPTIONS + 1) for stuck in (Stuck(i, n) for i in range(n))},
}
"""What the drop reasons of rows tell whose votes were for one position; the ledger keeps the reason alone."""

Extreme = Callable[[tuple[float, ...]], tuple[float, ...]]
"""Turns shares of 1 for one option and 0 for the others into what such a vote counts at the most."""


class Pair(NamedTuple):
    """Two candidates by number, the lower first, with the judge's verdict; `p_first` is the first one's share of the win."""

    first: int
    second: int
    verdict: Verdict | Ranking
    p_first: float


def win_shares(pairs: Sequence[Pair]) -> dict[int, float]:
    """Return, by candidate, its mean share of the win (0..1) over the pairs it is in."""
    shares: dict[int, list[float]] = {}
    for pair in pairs:
        shares.setdefault(pair.first, []).append(pair.p_first)
        shares.setdefault(pair.second, []).append(1 - pair.p_first)
    return {i: sum(found) / len(found) for i, found in sorted(shares.items())}


def share_of_two(first: float, second: float) -> float:
    """Return the first one's part of two scores, half where both are 0."""
    return first / (first + second) if first + second else 0.5


def best_against_worst(pairs: Sequence[Pair], scores: Mapping[int, float]) -> Pair:
    """Return the pair of the highest and the lowest score; of equals the one that `scores` names first.

    What shared a batch shows in the last bits of a score, also in those of equal texts, so scores count to five digits. The
    pair's `p_first` is shared out by the scores, which for two candidates is the verdict itself.
    """
    told = {i: round(score, 5) for i, score in scores.items()}
    best = max(told, key=told.__getitem__)
    worst = min((i for i in told if i != best), key=told.__getitem__)
    first, second = sorted((best, worst))
    verdict = next(p.verdict for p in pairs if (p.first, p.second) == (first, second))
    return Pair(first, second, verdict, share_of_two(scores[first], scores[second]))


def tie_kind(verdict: Verdict | Ranking) -> str:
    """Return the drop reason of an undecided pair; where every order's vote is for the same position, it says so."""
    if not verdict.votes:
        return TIE_EQUAL
    if isinstance(verdict, Ranking):
        return _list_tie(verdict)
    sides = {(v.p_a > 0.5) - (v.p_a < 0.5) for v in verdict.votes}
    if len(verdict.votes) > 1 and len(sides) == 1 and 0 not in sides:
        return TIE_FIRST if sides.pop() > 0 else TIE_SECOND
    return TIE


def _list_tie(ranking: Ranking) -> str:
    places = {favourite(vote.reply.shares) for vote in ranking.votes}
    place = places.pop()
    if places or place is None or len(ranking.votes) < 2:
        return TIE
    return _list_reason(Stuck(place, len(ranking.votes[0].shown)))


def favourite(shares: Sequence[float]) -> int | None:
    """Return the place of the one highest share; None where several have it."""
    top = max(shares)
    return shares.index(top) if list(shares).count(top) == 1 else None


def list_votes(ranking: Ranking) -> list[Row]:
    """Return the votes on a list: under which principle, which answers were shown where, and what each one got."""
    return [
        {
            "principle": vote.instruction,
            "shown": list(vote.shown),
            "shares": list(vote.reply.shares),
            "logprobs": None if vote.reply.logprobs is None else list(vote.reply.logprobs),
        }
        for vote in ranking.votes
    ]


# ------------------------------------------------------------------------------------------------------- figures


class _Seen(NamedTuple):
    """One vote: the candidates in the order shown, and the share each got."""

    shown: tuple[int, ...]
    shares: tuple[float, ...]

    def favourite(self) -> int | None:
        """Return the candidate liked best, if it is one."""
        place = favourite(self.shares)
        return None if place is None else self.shown[place]


class Evidence(NamedTuple):
    """What the figures need of one row; `votes` are in groups of one principle, an order each."""

    p_chosen: float
    votes: Sequence[Sequence[_Seen]]
    tied: bool
    unparsable: bool

    @classmethod
    def of(cls, row: Row) -> Evidence:
        """Return a row's."""
        votes = _seen_in_lists(row["votes"]) if row.get("votes") else _seen_in_pairs(row["p_a"] or [])
        return cls((1 + row["margin"]) / 2, votes, row["outcome"] == TIE, bool(row["unparsable_votes"]))

    def flips(self) -> float:
        """Return the share of principles under which the orders don't agree on the best candidate."""
        differ = [len({vote.favourite() for vote in group} - {None}) > 1 for group in self.votes]
        return sum(differ) / len(differ) if differ else 0.0


def _seen_in_lists(votes: Any) -> list[list[_Seen]]:
    """Return the votes of a row, which may be read back as JSON text."""
    groups: dict[str, list[_Seen]] = {}
    for vote in json.loads(votes) if isinstance(votes, str) else votes:
        groups.setdefault(vote["principle"], []).append(_Seen(tuple(vote["shown"]), tuple(vote["shares"])))
    return list(groups.values())


def _seen_in_pairs(shares: Sequence[float]) -> list[list[_Seen]]:
    both = zip(shares[::2], shares[1::2], strict=False)
    return [[_Seen((0, 1), (a, 1 - a)), _Seen((1, 0), (b, 1 - b))] for a, b in both]


def figures(kept: Sequence[Evidence], dropped: Mapping[str, int], *, swap: bool, extreme: Extreme | None) -> dict[str, Any]:
    """Return rates of ties and unreadable answers, the entropy of the labels and, of several orders, what position did."""
    ties = {reason: count for reason, count in dropped.items() if reason.startswith(TIE)}
    unreadable = dropped.get(UNPARSABLE, 0)
    judged = len(kept) + sum(ties.values()) + unreadable
    if not judged:
        return {}
    found: dict[str, Any] = {
        "ties": (sum(e.tied for e in kept) + sum(ties.values())) / judged,
        "unparsable": (sum(e.unparsable for e in kept) + unreadable) / judged,
        "entropy_bits": sum(binary_entropy(e.p_chosen) for e in kept) / len(kept) if kept else 1.0,
    }
    stuck = [STUCK[reason] for reason, count in ties.items() if reason in STUCK for _ in range(count)]
    return {**found, **_position(kept, stuck, extreme)} if swap else found


def _position(kept: Sequence[Evidence], stuck: Sequence[Stuck], extreme: Extreme | None) -> dict[str, Any]:
    """Return how the position counted, over the rows kept and the ties that it made."""
    excesses = [_excess([vote.shares for group in e.votes for vote in group]) for e in kept if e.votes]
    if extreme is not None:
        excesses += [_excess([extreme(tuple(float(i == place) for i in range(n)))]) for place, n in stuck]
    found: dict[str, Any] = {}
    if excesses:
        by_place = [_mean([e[i] for e in excesses if i < len(e)]) for i in range(max(map(len, excesses)))]
        found["position_bias"] = by_place[0]
        if len(by_place) > 2:
            found["position_excess"] = by_place
    if both := len(kept) + len(stuck):
        found["order_flips"] = (sum(e.flips() for e in kept) + len(stuck)) / both
    return found


def _excess(votes: Sequence[Sequence[float]]) -> list[float]:
    """Return, by place, the mean share that the option there got, less an equal share."""
    return [_mean(shares) - 1 / len(votes[0]) for shares in zip(*votes, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
