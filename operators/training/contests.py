"""A judge as a reward: what a reply wins against others to its prompt, against an answer of its row, or in a ranking.

Owns who meets whom, and what a reply's contests are worth. How a vote is asked and read is in `judging`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from caiflow.engine.errors import EngineError, StepError
from caiflow.engine.identity import digest
from caiflow.engine.operator import LLMs, RowLLM, StepContext
from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.pairwise import PairJudge
from caiflow.operators.judging.params import GroupJudging
from caiflow.operators.judging.ranked import RankJudge, mean_ranks
from caiflow.operators.judging.verdicts import Evidence, figures
from caiflow.operators.training.asked import FEWEST, UNREAD, AskedReward, Drawn, LogMetric, Reader

EVEN = 0.5
"""What a reply wins against its equal, and in a contest that can't be read."""
JUDGE = "judge/"
"""Begins the names of a judge's figures: `judge/NAME/position_bias`."""
PRINCIPLE = "principle/"
"""Begins the names of what a judge did by a principle: `principle/NAME/ID/share` of its contests, `.../margin` in them."""


def meetings(count: int, opponents: int | None = None) -> list[tuple[int, int]]:
    """Return which of `count` replies meet, by number: each as many others (all by default), those next to it in a ring.

    Raises:
        ValueError: an odd count can't meet an odd number each.
    """
    each = min(opponents or count - 1, count - 1)
    if count * each % 2:
        raise ValueError(f"{count} replies can't have {each} opponents each")
    steps = [(step, count) for step in range(1, each // 2 + 1)]
    steps += [(count // 2, count // 2)] if each % 2 else []
    return [(place, (place + step) % count) for step, starts in steps for place in range(starts)]


class Contests(AskedReward):
    """What replies win: the mean probability that a judge prefers a reply to those it meets, or its mean normalised rank.

    Source: the reward of the self-play preference optimisation of Swamy et al. (2024), arXiv 2401.04056, algorithm 1: the mean
    preference over the others drawn for the prompt.
    """

    def __init__(self, name: str, how: GroupJudging, context: StepContext, generations: int, llms: LLMs, read: Reader) -> None:
        super().__init__(name, how.model, llms, read)
        self._how = how
        self._generations = generations
        known = context.constitution if not how.instruction and how.principles != "all" else None
        self._principles = [principle.id for principle in known.having("judge")] if known else []
        self._pairs = PairJudge(how, context.constitution, context.seed, how.instruction)
        self._ranks = RankJudge(how, context.constitution, context.seed, how.instruction)

    def questions(self, drawn: Drawn, new: int | None = None) -> Iterator[Row]:
        """Yield a row for each contest of different replies; its uid is what is compared, in whatever order it was drawn."""
        if self._how.listwise:
            groups = self._groups(drawn) if new is None else [self._group(new)]
            yield from (row for group in groups if (row := self._list(drawn, group)))
            return
        for place, other in self._met(drawn, new):
            if row := self._pair(drawn, place, other):
                yield row

    async def ask(self, row: Row, llm: RowLLM) -> Row:
        """Return a contest's verdict: `won` by each answer, and the votes as the judge's figures want them."""
        try:
            return await (self._ask_list if self._how.listwise else self._ask_pair)(row, llm)
        except EngineError as error:
            if error.kind != "overflow":
                raise
            won = [EVEN] * len(row["answers"])
            return {"won": won, "p_a": [], "votes": None, "unparsable_votes": 1, "of": 1, "principles": [], "said": str(error)}

    def worth(self, drawn: Drawn, answer: Callable[[Row], Row], log_metric: LogMetric) -> list[float]:
        """Return what each reply won, on the mean."""
        won: dict[int, list[float]] = {place: [] for place in drawn.replies}
        found: dict[str, tuple[Row, Row]] = {}
        contests = equal = 0
        for members, row in self._contests(drawn):
            contests += 1
            equal += row is None
            told = None if row is None else answer(row)
            if row is not None and told is not None:
                found[row["uid"]] = row, told
            for place in members:
                won[place].append(
                    EVEN if row is None or told is None else told["won"][row["answers"].index(drawn.replies[place])]
                )
        self._note(list(found.values()), equal / contests, log_metric)
        return list(map(fmean, won.values()))

    def _contests(self, drawn: Drawn) -> Iterator[tuple[Sequence[int], Row | None]]:
        """Yield the replies in each contest, and its question; None where they are equal."""
        if self._how.listwise:
            yield from ((group, self._list(drawn, group)) for group in self._groups(drawn))
            return
        for place, other in self._met(drawn, None):
            yield [place] if other is None else [place, other], self._pair(drawn, place, other)

    def _groups(self, drawn: Drawn) -> list[range]:
        return [self._group(start) for start in range(0, len(drawn.prompts), self._generations)]

    def _group(self, place: int) -> range:
        start = place - place % self._generations
        return range(start, start + self._generations)

    def _met(self, drawn: Drawn, new: int | None) -> Iterator[tuple[int, int | None]]:
        """Yield who meets whom of those that are drawn; None is the row's own answer."""
        if self._how.against:
            yield from ((place, None) for place in (drawn.replies if new is None else (new,)))
            return
        for group in self._groups(drawn) if new is None else [self._group(new)]:
            for one, other in meetings(len(group), self._how.opponents):
                places = group[one], group[other]
                if new in (None, *places) and all(place in drawn.replies for place in places):
                    yield places

    def _pair(self, drawn: Drawn, place: int, other: int | None) -> Row | None:
        """Return the question of a pair; which answer comes first is drawn by what both say."""
        opponent = self._anchor(drawn, place) if other is None else drawn.replies[other]
        pair, turns = sorted((drawn.replies[place], opponent)), drawn.turns(place)
        uid = digest([turns, pair])[:32]
        return None if pair[0] == pair[1] else {"uid": uid, "prompt": turns, "answers": pair[:: (-1) ** int(uid[0], 16)]}

    def _anchor(self, drawn: Drawn, place: int) -> str:
        column = self._how.against or ""
        text = drawn.more[place].get(column)
        if not isinstance(text, str) or not text.strip():
            said = f"rewards.{self.__name__}: a row has no text in `{column}`, got {str(text)[:60]!r}"
            raise StepError(said, "leave such rows out with `where` in `filter`")
        return text

    def _list(self, drawn: Drawn, group: Sequence[int]) -> Row | None:
        if not all(place in drawn.replies for place in group):
            return None
        answers, turns = sorted({drawn.replies[place] for place in group}), drawn.turns(group[0])
        return {"uid": digest([turns, answers])[:32], "prompt": turns, "answers": answers} if len(answers) > 1 else None

    async def _ask_pair(self, row: Row, llm: RowLLM) -> Row:
        first, second = row["answers"]
        verdict = await self._pairs.verdict(row["uid"], row["prompt"], (first, second), llm)
        return {
            "won": [verdict.p_first, 1 - verdict.p_first],
            "p_a": [vote.p_a for vote in verdict.votes],
            "votes": None,
            "unparsable_votes": verdict.unparsable,
            "of": len(verdict.votes),
            "principles": list(dict.fromkeys(vote.instruction for vote in verdict.votes)),
            "said": verdict.unread,
        }

    async def _ask_list(self, row: Row, llm: RowLLM) -> Row:
        votes = await self._ranks.votes(row["uid"], row["prompt"], row["answers"], llm)
        means = mean_ranks(votes)
        return {
            "won": [means[number] for number in range(len(row["answers"]))],
            "p_a": [],
            "votes": [{"principle": v.instruction, "shown": v.shown, "shares": v.shares} for v in votes],
            "unparsable_votes": sum(not vote.parsed for vote in votes),
            "of": len(votes),
            "principles": list(dict.fromkeys(vote.instruction for vote in votes)),
            "said": next((vote.said for vote in votes if vote.said), ""),
        }

    def _note(self, found: Sequence[tuple[Row, Row]], equal: float, log_metric: LogMetric) -> None:
        """Note the judge's figures of a batch, as `judge` has them."""
        name = self.__name__
        log_metric(f"{JUDGE}{name}/equal_answers", equal)
        if not found:
            return
        told = [verdict for _, verdict in found]
        lost = [verdict for verdict in told if verdict["unparsable_votes"] == verdict["of"]]
        if len(lost) == len(told) >= FEWEST:
            raise StepError(
                f"rewards.{name}: none of {len(told)} verdicts can be read, the judge answered {lost[0]['said'][:200]!r}",
                "take a stronger judge, or show it examples (`few_shot`)",
            )
        log_metric(f"{UNREAD}{name}", fmean(bool(verdict["unparsable_votes"]) for verdict in told))
        margins = [max(verdict["won"]) - min(verdict["won"]) for verdict in told]
        seen = zip(told, margins, strict=True)
        rows = [{**verdict, "margin": m, "outcome": "tie" if m < 1e-9 else "decided"} for verdict, m in seen]
        for figure, value in figures(list(map(Evidence.of, rows)), {}, swap=self._how.swap, extreme=None).items():
            if isinstance(value, int | float):
                log_metric(f"{JUDGE}{name}/{figure}", value)
        if longer := [share for one in found if (share := _longer(*one)) is not None]:
            log_metric(f"{JUDGE}{name}/longer_won", fmean(longer))
        by = _by_principle(told, margins)
        for one in dict.fromkeys([*self._principles, *by]):
            log_metric(f"{PRINCIPLE}{name}/{one}/share", len(by.get(one, ())) / len(told))  # 0 counts: shares are averaged
            if one in by:
                log_metric(f"{PRINCIPLE}{name}/{one}/margin", fmean(by[one]))


def _longer(row: Row, verdict: Row) -> float | None:
    """Return what the longest answer of a contest won beside the shortest, as a share; None where all are as long."""
    lengths = list(map(len, row["answers"]))
    longest, shortest = (verdict["won"][lengths.index(end(lengths))] for end in (max, min))
    return None if max(lengths) == min(lengths) else EVEN + (longest - shortest) / 2


def _by_principle(told: Sequence[Mapping[str, Any]], margins: Sequence[float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for verdict, margin in zip(told, margins, strict=True):
        for one in verdict["principles"]:
            found.setdefault(one or "instruction", []).append(margin)
    return found
