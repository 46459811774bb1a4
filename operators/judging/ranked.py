"""How a model is asked to rank several answers in one question, and how its words become ranks.

Owns the question, the reading of a ranking, and its two orders: one drawn for the set of answers, and its reverse, under the
same principle. Which answers are ranked, and what ranks are for, is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from caiflow.engine.llm.base import Sampling
from caiflow.engine.operator import RowLLM, together
from caiflow.operators.judging.options import Instruction, OptionsJudge
from caiflow.operators.judging.prompts import LETTERS, judge_message

_PREFILL = "From the best to the worst: ("
_ASKED = "Rank all {count} options by this, from the best to the worst. Write their letters alone, with > between them."
_RUN = re.compile(r"[^A-Za-z<]*[A-Z](?:[^A-Za-z<]+[A-Z](?![A-Za-z]))*(?=[^A-Za-z<]*$|\s*\)?\s*[.;\n])")


class RankVote(NamedTuple):
    """One ranking: `shown` are the answers by number as they were shown, `ranks` theirs (1 best, 0 worst; halves unread)."""

    instruction: str
    shown: tuple[int, ...]
    ranks: tuple[float, ...]
    parsed: bool = True
    said: str = ""
    """What couldn't be read."""

    @property
    def shares(self) -> list[float]:
        """The ranks as shares that sum to 1."""
        return [2 * rank / len(self.ranks) for rank in self.ranks]


class RankJudge(OptionsJudge):
    """Ranks lists of answers."""

    async def votes(self, uid: str, prompt: Any, answers: Sequence[str], llm: RowLLM) -> list[RankVote]:
        """Return the rankings of different answers under each instruction: in the order drawn for `uid`, and in its reverse."""
        drawn = self.drawn_order(uid, dict(enumerate(answers)))
        orders = (drawn, drawn[::-1]) if self._how.swap else (drawn,)
        asked = [(i, order) for i in self.instructions(uid) for order in orders]
        return await together(self._vote(prompt, i, order, answers, llm) for i, order in asked)

    async def _vote(
        self, prompt: Any, instruction: Instruction, order: tuple[int, ...], answers: Sequence[str], llm: RowLLM
    ) -> RankVote:
        text = f"{instruction.text}\n\n{_ASKED.format(count=len(order))}"
        message = judge_message(prompt, text, [answers[i] for i in order])
        sampling = Sampling(max_tokens=8 + 6 * len(order), stop=("\n",))
        said = (await llm.chat([message], sampling, prefill=_PREFILL)).text
        ranks = parse_ranking(said, LETTERS[: len(order)])
        if ranks is None:
            return RankVote(instruction.id, order, (0.5,) * len(order), parsed=False, said=said)
        return RankVote(instruction.id, order, tuple(ranks[letter] for letter in LETTERS[: len(order)]))


def mean_ranks(votes: Sequence[RankVote]) -> dict[int, float]:
    """Return each answer's mean rank over all votes, by number: 1 where it was always best, 0 where it was always worst."""
    totals: dict[int, float] = {}
    for vote in votes:
        for number, rank in zip(vote.shown, vote.ranks, strict=True):
            totals[number] = totals.get(number, 0.0) + rank / len(votes)
    return totals


def parse_ranking(text: str, letters: str) -> Mapping[str, float] | None:
    """Return the rank of each letter, from 1 for the first named to 0 for the last; letters with `=` between share theirs.

    None where not every letter is named once, where words stand between them, or `<` turns the order round.
    """
    run = _RUN.match(text)
    found = re.findall(r"=|[A-Z]", run[0]) if run else []
    named = [sign for sign in found if sign != "="]
    if sorted(named) != sorted(letters):
        return None
    groups: list[list[str]] = []
    for place, sign in enumerate(found):
        if sign != "=" and groups and found[place - 1] == "=":
            groups[-1].append(sign)
        elif sign != "=":
            groups.append([sign])
    ranks: dict[str, float] = {}
    above = 0
    for group in groups:
        mean = above + (len(group) - 1) / 2
        ranks |= dict.fromkeys(group, 1 - mean / (len(letters) - 1))
        above += len(group)
    return ranks
