"""What moved a judge in a set of votes: each vote with what it was shown first, for `measures.effects`.

Owns what is weighed: the place, the lengths in characters, and whose answer each is.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2

from caiflow.operators.judging.pairwise import Verdict
from caiflow.operators.measures.effects import JudgedVote
from caiflow.operators.measures.effects import effects as effects


def votes_of(uid: str, pair: tuple[str, str], verdict: Verdict, sides: Mapping[str, float]) -> list[JudgedVote]:
    """Return the readable votes on a pair; `sides` are the effects that take its first answer's side (1), the other's (-1)."""
    longer = log2((len(pair[0]) + 1) / (len(pair[1]) + 1))
    found = []
    for vote in verdict.votes:
        side = -1.0 if vote.swapped else 1.0
        weights = {"position": 1.0, **{name: side * value for name, value in {"length": longer, **sides}.items()}}
        found += [JudgedVote(uid, vote.p_a, weights)] if vote.parsed else []
    return found
