"""Preference pairs made of a row's answers: each is judged, tied, left out or labelled as the step's parameters say.

Owns ties, unreadable answers and labels; how a vote is asked and averaged is in `options`, `pairwise` and
`listwise`, what many votes amount to in `verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from caiflow.engine.identity import key
from caiflow.engine.operator import RowDropped, RowLLM, together
from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.listwise import ListJudge, Ranking
from caiflow.operators.judging.pairwise import PairJudge, Verdict
from caiflow.operators.judging.verdicts import (
    TIE,
    UNPARSABLE,
    Evidence,
    Extreme,
    Pair,
    best_against_worst,
    figures,
    list_votes,
    share_of_two,
    tie_kind,
    win_shares,
)
from caiflow.operators.measures.attribution import Judged
from caiflow.operators.measures.probability import bounded

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import Constitution
    from caiflow.operators.judging.params import JudgeParams

_ROUNDING = 1e-9


class Preferences:
    """The preferences of one step's judge."""

    def __init__(self, params: JudgeParams, constitution: Constitution | None, seed: int) -> None:
        self._params, self._seed = params, seed
        self._pairs = PairJudge(params, constitution, seed)
        self._lists = ListJudge(params, constitution, seed)

    async def row(self, row: Row, answers: Sequence[str], llm: RowLLM) -> Row | list[Row]:
        """Return the preference pair of one row with these answers, or a row for each pair.

        Raises:
            RowDropped: there aren't two answers, or every pair is tied or unreadable.
        """
        usable = [i for i, text in enumerate(answers) if text.strip()]
        if len(usable) < 2:
            raise RowDropped("fewer than two answers that aren't empty")
        found, scores = await (self._listed if self._params.listwise else self._paired)(row, answers, usable, llm)
        principles = [i.id for i in self._pairs.instructions(row["uid"], self._params.row_rubric(row))]
        pairs = found if self._params.pairs == "all" else [best_against_worst(found, self._drawn(scores, row["uid"]))]
        lost = [self._lost(pair) for pair in pairs]
        if all(lost):
            raise RowDropped(str(lost[0]), next((pair.verdict.unread for pair in pairs if pair.verdict.unread), ""))
        return [
            self._columns(pair, answers, scores, principles) for pair, reason in zip(pairs, lost, strict=True) if not reason
        ]

    def figures(self, rows: Iterable[Row], dropped: Mapping[str, int]) -> Mapping[str, Any]:
        """Return the figures about the judge, from the rows kept and the reasons of those that weren't."""
        evidence, judged = [], Judged()
        for row in rows:
            evidence.append(Evidence.of(row))
            if not row.get("votes"):
                judged.see(row.get("principles") or (), row["p_a"] or (), swap=self._params.swap)
        found = figures(evidence, dropped, swap=self._params.swap, extreme=self._extreme)
        return {**found, **({"by_principle": told} if (told := judged.figures()) else {})}

    @property
    def _extreme(self) -> Extreme | None:
        """What a vote counts that is for one position throughout, where it is known."""
        thinking = self._params.chain_of_thought
        if thinking and thinking.clamp:
            return lambda shares: bounded(shares, thinking.clamp)
        return tuple if self._params.method == "text" and not thinking else None

    async def _paired(
        self, row: Row, answers: Sequence[str], usable: Sequence[int], llm: RowLLM
    ) -> tuple[list[Pair], dict[int, float]]:
        """Return all pairs, each judged on its own, and every candidate's share of its wins."""
        numbers = list(combinations(usable, 2))
        given = self._params.row_rubric(row)
        asked = (self._pairs.verdict(row["uid"], row["prompt"], (answers[i], answers[j]), llm, given) for i, j in numbers)
        found = [Pair(i, j, v, v.p_first) for (i, j), v in zip(numbers, await together(asked), strict=True)]
        return found, win_shares(found)

    async def _listed(
        self, row: Row, answers: Sequence[str], usable: Sequence[int], llm: RowLLM
    ) -> tuple[list[Pair], dict[int, float]]:
        """Return all pairs by their scores in one list, and those scores; equal answers are shown once and score alike."""
        number = {answers[i]: i for i in reversed(usable)}
        different = {i: answers[i] for i in usable if number[answers[i]] == i}
        ranking = await self._lists.ranking(row["uid"], row["prompt"], different, llm, self._params.row_rubric(row))
        share = ranking.scores() or dict.fromkeys(different, 1.0)
        start = int.from_bytes(key("equals", str(self._seed), row["uid"])[:4], "little") % len(usable)
        scores = {i: share[number[answers[i]]] for i in (*usable[start:], *usable[:start])}
        found = []
        for i, j in combinations(usable, 2):
            verdict = Ranking(()) if answers[i] == answers[j] else ranking
            found.append(Pair(i, j, verdict, share_of_two(scores[i], scores[j])))
        return found, scores

    def _drawn(self, scores: Mapping[int, float], uid: str) -> Mapping[int, float]:
        """Return the scores with no candidate always first: where votes are coarse, different texts often score alike."""
        if not self._params.coarse:
            return scores
        return {i: scores[i] for i in sorted(scores, key=lambda i: key("equals", str(self._seed), uid, str(i)))}

    def _lost(self, pair: Pair) -> str:
        """Return the reason to leave a pair out, or an empty text."""
        unread = pair.verdict.unparsable
        if unread and (
            self._params.unparsable == "drop" or (self._params.ties == "drop" and unread == len(pair.verdict.votes))
        ):
            return UNPARSABLE
        return tie_kind(pair.verdict) if self._tied(pair) and self._params.ties == "drop" else ""

    def _tied(self, pair: Pair) -> bool:
        return abs(pair.p_first - 0.5) <= self._params.tie_margin + _ROUNDING

    def _columns(self, pair: Pair, answers: Sequence[str], scores: Mapping[int, float], principles: Sequence[str]) -> Row:
        tied = self._tied(pair)
        first_wins = tied or pair.p_first > 0.5
        chosen, rejected = (pair.first, pair.second) if first_wins else (pair.second, pair.first)
        p_chosen = 0.5 if tied else max(pair.p_first, 1 - pair.p_first)
        return {
            "principle": principles[0],
            "principles": list(principles),
            "outcome": TIE if tied else "decided",
            "rejected": answers[rejected],
            "chosen": answers[chosen],
            "p_chosen": 1.0 if self._params.labels == "hard" and not tied else p_chosen,
            "margin": 2 * p_chosen - 1,
            "chosen_index": chosen,
            "rejected_index": rejected,
            "scores": [scores.get(i) for i in range(len(answers))],
            "p_a": [v.p_a for v in pair.verdict.votes],
            **_evidence(pair.verdict),
            "thoughts": [v.thought for v in pair.verdict.votes] if self._params.chain_of_thought else None,
            "unparsable_votes": pair.verdict.unparsable,
        }


def _evidence(verdict: Verdict | Ranking) -> Row:
    """Return what the options got as shown, in full."""
    if isinstance(verdict, Ranking):
        return {"votes": list_votes(verdict)}
    given = [v.logprobs for v in verdict.votes if v.logprobs is not None]
    return {"logprob_a": [a for a, _ in given] or None, "logprob_b": [b for _, b in given] or None}
