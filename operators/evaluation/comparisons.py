"""Models compared by a judge, answer against answer: win rates, and Elo ratings with their uncertainty.

Owns which answers meet and what the votes amount to. How a vote is asked is in `engine.pairwise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.operators.evaluation.attempts import answered, attempted
from caiflow.operators.evaluation.params import ComparisonParams
from caiflow.operators.judging.pairwise import PairJudge, Verdict, judged_votes
from caiflow.operators.measures.effects import effects
from caiflow.operators.measures.statistics import Comparison, elo_ratings, wilson

COLUMNS: Mapping[str, Any] = {
    "uid": "text",
    "comparison": "text",
    "set": "text",
    "first": "text",
    "second": "text",
    "score": "number",
    "p_a": "numbers",
    "unparsable_votes": "integer",
    "failed": "text",
}
"""The columns of the comparisons kept beside the figures; `score` is the first model's share of the win."""


async def compare(
    name: str, how: ComparisonParams, answers: Mapping[tuple[str, str], Sequence[Row]], llms: LLMs, judge: PairJudge
) -> list[Row]:
    """Return a row for each pair of answers to one prompt; `answers` are by model and set, sample 0 of each is compared."""
    asked = [row for name_of_set in how.sets for row in _pairs(answers, name_of_set, how)]

    async def ask(row: Row, llm: RowLLM) -> Row:
        pair = (row["a"], row["b"])
        verdict = await judge.verdict(row["uid"], row["prompt"], pair, llm)
        group = f"{row['set']}\0{row['uid']}"
        return {
            "score": _score(verdict, how.labels),
            "p_a": [v.p_a for v in verdict.votes],
            "unparsable_votes": verdict.unparsable,
            "moved": judged_votes(group, pair, verdict, {"own": _own(row, how.judge)}),
        }

    blank: Row = {"score": None, "p_a": [], "unparsable_votes": 0, "moved": []}
    found = await llms.map("comparison", how.judge, asked, attempted(ask, blank))
    return [{**row, **answer, "comparison": name} for row, answer in zip(asked, found, strict=True)]


def _own(row: Row, judge: str) -> float:
    """Return 1 where the first answer is the judge's own, -1 where the second one is, else 0."""
    return float(row["first"] == judge) - float(row["second"] == judge)


def _pairs(answers: Mapping[tuple[str, str], Sequence[Row]], set_name: str, how: ComparisonParams) -> list[Row]:
    by_model = {
        model: {row["uid"]: row for row in rows if row["sample"] == 0 and not row["failed"]}
        for (model, name), rows in answers.items()
        if name == set_name
    }
    meetings = [pair for pair in combinations(by_model, 2) if how.against is None or how.against in pair]
    uids = list(dict.fromkeys(uid for rows in by_model.values() for uid in rows))[: how.limit]
    return [
        {
            "uid": uid,
            "set": set_name,
            "first": first,
            "second": second,
            "prompt": by_model[first][uid]["prompt"],
            "a": by_model[first][uid]["response"],
            "b": by_model[second][uid]["response"],
        }
        for uid in uids
        for first, second in meetings
        if uid in by_model[first] and uid in by_model[second]
    ]


def _score(verdict: Verdict, labels: str) -> float:
    p = verdict.p_first
    if labels == "soft" or abs(p - 0.5) < 1e-9:
        return p
    return float(p > 0.5)


def figures(rows: Sequence[Row], anchor: str, prior: float, seed: int) -> dict[str, Any]:
    """Return win rates of every pair (both ways), ratings, and how the judge behaved.

    Where no answer of the anchor's was compared, the other models have their win rates, and none a rating.
    """
    rows = answered(rows)
    votes = [p for row in rows for p in row["p_a"]]
    met = [Comparison(r["first"], r["second"], r["score"], f"{r['set']}\0{r['uid']}") for r in rows]
    if not met:
        return {"win_rates": {}, "ratings": {}, "unrated": [], "n": 0}
    anchored = any(anchor in (c.first, c.second) for c in met)
    ratings = elo_ratings(met, anchor=anchor, prior=prior, seed=seed) if anchored else {}
    return {
        "win_rates": _win_rates(rows),
        "ratings": {name: rating._asdict() for name, rating in ratings.items()},
        "unrated": [name for name in dict.fromkeys(n for c in met for n in (c.first, c.second)) if name not in ratings],
        "n": len(rows),
        "unparsable": sum(bool(r["unparsable_votes"]) for r in rows) / len(rows),
        "ties": sum(abs(r["score"] - 0.5) < 1e-9 for r in rows) / len(rows),
        "position_bias": sum(votes) / len(votes) - 0.5 if votes else 0.0,
        "effects": effects([vote for row in rows for vote in row["moved"]], seed=seed),
    }


def _win_rates(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    scores: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        scores.setdefault((row["first"], row["second"]), []).append(row["score"])
        scores.setdefault((row["second"], row["first"]), []).append(1 - row["score"])
    table: dict[str, dict[str, Any]] = {}
    for (first, second), found in scores.items():
        table.setdefault(first, {})[second] = wilson(min(max(sum(found), 0.0), len(found)), len(found)).as_dict()
    return table
