"""What sets the arms of a matrix apart, prompt by prompt: `rl@one` and `rl@two` answered the same ones.

Owns the pairing and which difference is told; the interval of a difference is in `measures.statistics`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import Any

from caiflow.engine.identity import arms_of
from caiflow.engine.rows.columns import Row
from caiflow.operators.evaluation.answers import Groups, looked_at
from caiflow.operators.measures.statistics import paired_change


def differences(
    groups: Groups, models: Sequence[str], checks: Sequence[str], sets: Sequence[str], graders: Collection[str] = ()
) -> dict[str, Any]:
    """Return by arms (`rl@*`), set and check which two arms are furthest apart, with the mean and interval of their difference.

    Checks of which `graders` has the names count where the grader's reply could be read, and nowhere else.
    `unseen` is the largest difference of any two of them that the prompts don't rule out. The intervals of all pairs hold
    together with 95% (Bonferroni), so that many arms don't make one stand out by chance.
    """
    found: dict[str, Any] = {}
    for base, arms in arms_of(models).items():
        places = {(s, check): told for s in sets for check in checks if (told := _furthest(groups, arms, s, check, graders))}
        for (set_name, check), told in places.items():
            found.setdefault(base, {}).setdefault(set_name, {})[check] = told
    return found


def _furthest(
    groups: Groups, arms: Sequence[str], set_name: str, check: str, graders: Collection[str]
) -> dict[str, Any] | None:
    """Return the difference of the two arms that are most surely apart; None where some two share no prompt."""
    shares = {arm: _shares(groups.get((arm, set_name), ()), check, graders) for arm in arms}
    pairs = list(combinations(arms, 2))
    z = NormalDist().inv_cdf(1 - 0.025 / len(pairs))
    changes = []
    for one, other in pairs:
        moved = [share - shares[one][uid] for uid, share in shares[other].items() if uid in shares[one]]
        if not moved:
            return None
        changes.append({"from": one, "to": other, **paired_change(moved, z)})
    most = max(changes, key=lambda change: (max(change["low"], -change["high"]), abs(change["mean"])))
    return {**most, "unseen": max(max(-change["low"], change["high"]) for change in changes)}


def _shares(rows: Sequence[Row], check: str, graders: Collection[str]) -> dict[str, float]:
    """Return by prompt the share of its answers that meet a check or grader, where any of them was looked at."""
    met: dict[str, list[bool]] = {}
    for row in looked_at(rows, check, graders):
        met.setdefault(row["uid"], []).append(check in row["checks"])
    return {uid: sum(values) / len(values) for uid, values in met.items()}
