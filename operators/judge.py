"""`judge`: asks a model which of several answers is better and makes preference pairs of its votes.

Owns the candidates, ties, unreadable answers and labels; how a vote is asked and averaged is in `engine.judging`. Never trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import Field

from caiflow.engine.judging import Judging, PairJudge, Verdict
from caiflow.engine.operator import ColumnName, ColumnType, ModelRowParams, Row, RowDropped, RowLLM, RowOperator, together
from caiflow.engine.prompts import FORMAT_VERSION
from caiflow.engine.statistics import binary_entropy

TIE = "tie"
TIE_FIRST = "tie: the first option in every order"
TIE_SECOND = "tie: the second option in every order"
TIE_EQUAL = "tie: equal answers"
UNPARSABLE = "unparsable"
_ROUNDING = 1e-9


class JudgeParams(ModelRowParams, Judging):
    """Parameters of `judge`."""

    candidates: ColumnName | Annotated[tuple[ColumnName, ...], Field(min_length=2, max_length=26)] = "responses"
    """The column that holds a list of answers, or the columns that hold one each."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """With more than two candidates: one row of the best against the worst, or a row for each pair."""
    labels: Literal["soft", "hard"] = "soft"
    """`soft` keeps the judge's probability as `p_chosen`; `hard` makes it 1."""
    ties: Literal["drop", "keep"] = "drop"
    """What becomes of undecided pairs: left out, or kept with `p_chosen` 0.5 and the first candidate as `chosen`."""
    tie_margin: float = Field(default=0.0, ge=0, lt=0.5)
    """Probabilities at most this far from 0.5 are ties."""
    unparsable: Literal["drop", "tie"] = "drop"
    """A pair with an unreadable vote is left out, or that vote counts half for each side."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two candidates by number, the lower first, with the judge's verdict; `p_first` is the first one's share of the win."""

    first: int
    second: int
    verdict: Verdict
    p_first: float


class Judge(RowOperator[JudgeParams]):
    """Compare answers and label which is better."""

    name = "judge"
    params_type = JudgeParams
    uses_constitution = True

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of the conversation and its candidates."""
        return {self.params.input: ["prompt", *self._candidate_columns]}

    def reads(self) -> Sequence[str]:
        """Return the columns of the conversation and its candidates."""
        return ["prompt", *self._candidate_columns]

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the preference pair, its label, and the evidence: what each vote gave to options A and B as shown."""
        return {
            "principle": "text",
            "principles": "texts",
            "outcome": "text",
            "rejected": "text",
            "chosen": "text",
            "p_chosen": "number",
            "margin": "number",
            "chosen_index": "integer",
            "rejected_index": "integer",
            "scores": "numbers",
            "p_a": "numbers",
            "logprob_a": "numbers",
            "logprob_b": "numbers",
            "thoughts": "texts",
            "unparsable_votes": "integer",
        }

    def check(self) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """Yield what the constitution lacks."""
        if self.context.constitution is not None:
            yield from self._judge.problems()

    def identity(self) -> Mapping[str, Any]:
        """Return the version of the message format; the texts drawn are in the rows' identities."""
        return {"format": FORMAT_VERSION}

    def row_identity(self, row: Row) -> Any:
        """Return the texts of the row's principles and examples."""
        return self._judge.identity(row["uid"])

    def calls(self) -> int:
        """Return the calls of all pairs; a column of answers is taken to hold two."""
        count = len(self._candidate_columns) if len(self._candidate_columns) > 1 else 2
        return self._judge.calls() * (count * (count - 1) // 2)

    async def row(self, row: Row, llm: RowLLM) -> Row | list[Row]:
        """Return the preference pair of one row, or a row for each pair."""
        answers = self._answers(row)
        usable = [i for i, text in enumerate(answers) if text.strip()]
        if len(usable) < 2:
            raise RowDropped("fewer than two answers that aren't empty")
        numbers = list(combinations(usable, 2))
        asked = (self._judge.verdict(row["uid"], row["prompt"], (answers[i], answers[j]), llm) for i, j in numbers)
        found = [Pair(i, j, v, v.p_first) for (i, j), v in zip(numbers, await together(asked), strict=True)]
        scores = win_shares(found)
        principles = [i.id for i in self._judge.instructions(row["uid"])]
        pairs = found if self.params.pairs == "all" else [best_against_worst(found, scores)]
        lost = [self._lost(pair) for pair in pairs]
        if all(lost):
            raise RowDropped(str(lost[0]))
        return [
            self._columns(pair, answers, scores, principles) for pair, reason in zip(pairs, lost, strict=True) if not reason
        ]

    def metrics(self, rows: Iterable[Row], dropped: Mapping[str, int]) -> Mapping[str, Any]:
        """Return rates of ties and unreadable answers, the judge's bias for a position, and the entropy of its labels.

        `position_bias` is the mean probability given to the option shown first, less 0.5. `order_flips` is the share of rows
        where both orders preferred the same letter. Rows dropped because every vote was for one position count in both, with
        the share such a vote has (1 for text votes, the clamp's end after thoughts); plain log-probabilities that cancel out
        within `tie_margin` count in `order_flips` alone.
        """
        return _figures(list(map(_Evidence.of, rows)), dropped, swap=self.params.swap, extreme=self._extreme)

    @cached_property
    def _judge(self) -> PairJudge:
        return PairJudge(self.params, self.context.constitution, self.context.seed)

    @property
    def _extreme(self) -> float | None:
        """The share of a vote that is for one position throughout, where it is known."""
        thinking = self.params.chain_of_thought
        if thinking and thinking.clamp:
            return thinking.clamp[1]
        return 1.0 if self.params.method == "text" and not thinking else None

    @property
    def _candidate_columns(self) -> tuple[str, ...]:
        given = self.params.candidates
        return (given,) if isinstance(given, str) else given

    def _answers(self, row: Row) -> list[str]:
        """Return all candidates in their order; absent ones are empty."""
        given = self.params.candidates
        texts = (row[given] or ()) if isinstance(given, str) else [row[name] for name in given]
        return [text or "" for text in texts]

    def _lost(self, pair: Pair) -> str:
        """Return the reason to leave a pair out, or an empty text."""
        if pair.verdict.unparsable and self.params.unparsable == "drop":
            return UNPARSABLE
        return tie_kind(pair.verdict) if self._tied(pair) and self.params.ties == "drop" else ""

    def _tied(self, pair: Pair) -> bool:
        return abs(pair.p_first - 0.5) <= self.params.tie_margin + _ROUNDING

    def _columns(self, pair: Pair, answers: Sequence[str], scores: Mapping[int, float], principles: Sequence[str]) -> Row:
        tied = self._tied(pair)
        first_wins = tied or pair.p_first > 0.5
        chosen, rejected = (pair.first, pair.second) if first_wins else (pair.second, pair.first)
        p_chosen = 0.5 if tied else max(pair.p_first, 1 - pair.p_first)
        votes = pair.verdict.votes
        given = [v.logprobs for v in votes if v.logprobs is not None]
        return {
            "principle": principles[0],
            "principles": list(principles),
            "outcome": TIE if tied else "decided",
            "rejected": answers[rejected],
            "chosen": answers[chosen],
            "p_chosen": 1.0 if self.params.labels == "hard" and not tied else p_chosen,
            "margin": 2 * p_chosen - 1,
            "chosen_index": chosen,
            "rejected_index": rejected,
            "scores": [scores.get(i) for i in range(len(answers))],
            "p_a": [v.p_a for v in votes],
            "logprob_a": [a for a, _ in given] or None,
            "logprob_b": [b for _, b in given] or None,
            "thoughts": [v.thought for v in votes] if self.params.chain_of_thought else None,
            "unparsable_votes": pair.verdict.unparsable,
        }


def win_shares(pairs: Sequence[Pair]) -> dict[int, float]:
    """Return, by candidate, its mean share of the win (0..1) over the pairs it is in."""
    shares: dict[int, list[float]] = {}
    for pair in pairs:
        shares.setdefault(pair.first, []).append(pair.p_first)
        shares.setdefault(pair.second, []).append(1 - pair.p_first)
    return {i: sum(found) / len(found) for i, found in sorted(shares.items())}


def best_against_worst(pairs: Sequence[Pair], scores: Mapping[int, float]) -> Pair:
    """Return the pair of the highest and the lowest score, the first of equals.

    Its `p_first` is shared out by the scores, which for two candidates is the verdict itself.
    """
    best = max(scores, key=lambda i: scores[i])
    worst = min((i for i in scores if i != best), key=lambda i: scores[i])
    first, second = sorted((best, worst))
    verdict = next(p.verdict for p in pairs if (p.first, p.second) == (first, second))
    total = scores[first] + scores[second]
    return Pair(first, second, verdict, scores[first] / total if total else 0.5)


def tie_kind(verdict: Verdict) -> str:
    """Return the drop reason of an undecided pair; where every order's vote is for the same position, it says so."""
    if not verdict.votes:
        return TIE_EQUAL
    sides = {(v.p_a > 0.5) - (v.p_a < 0.5) for v in verdict.votes}
    if len(verdict.votes) > 1 and len(sides) == 1 and 0 not in sides:
        return TIE_FIRST if sides.pop() > 0 else TIE_SECOND
    return TIE


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What the figures need of one row."""

    p_chosen: float
    p_a: float | None
    flips: float
    tied: bool
    unparsable: bool

    @classmethod
    def of(cls, row: Row) -> _Evidence:
        shares = row["p_a"] or []
        both = list(zip(shares[::2], shares[1::2], strict=False))
        flips = sum((a - 0.5) * (b - 0.5) > 0 for a, b in both) / len(both) if both else 0.0
        mean = sum(shares) / len(shares) if shares else None
        return cls((1 + row["margin"]) / 2, mean, flips, row["outcome"] == TIE, bool(row["unparsable_votes"]))


def _figures(kept: Sequence[_Evidence], dropped: Mapping[str, int], *, swap: bool, extreme: float | None) -> dict[str, Any]:
    ties = {reason: count for reason, count in dropped.items() if reason.startswith(TIE)}
    unreadable = dropped.get(UNPARSABLE, 0)
    judged = len(kept) + sum(ties.values()) + unreadable
    if not judged:
        return {}
    figures: dict[str, Any] = {
        "ties": (sum(e.tied for e in kept) + sum(ties.values())) / judged,
        "unparsable": (sum(e.unparsable for e in kept) + unreadable) / judged,
        "entropy_bits": sum(binary_entropy(e.p_chosen) for e in kept) / len(kept) if kept else 1.0,
    }
    return {**figures, **_position(kept, ties.get(TIE_FIRST, 0), ties.get(TIE_SECOND, 0), extreme)} if swap else figures


def _position(kept: Sequence[_Evidence], first: int, second: int, extreme: float | None) -> dict[str, float]:
    """Return how the position counted, over the rows kept and the ties that it made (`first` and `second` of them)."""
    shares = [e.p_a for e in kept if e.p_a is not None]
    figures = {}
    if extreme is not None:
        shares += [extreme] * first + [1 - extreme] * second
    if shares:
        figures["position_bias"] = sum(shares) / len(shares) - 0.5
    if both := len(kept) + first + second:
        figures["order_flips"] = (sum(e.flips for e in kept) + first + second) / both
    return figures
