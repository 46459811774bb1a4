"""How a model is asked which of three to nine answers is best, all shown at once, and how its votes become their scores.

Owns the orders: the list is turned by one place until each answer stood at each place, always under the same principle. How a
question is asked and read is in `judging`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from caiflow.engine.errors import WrongValue
from caiflow.engine.operator import RowLLM, together
from caiflow.operators.judging.options import MOST_OPTIONS, Case, Instruction, OptionsJudge, Reply


class ListVote(NamedTuple):
    """One answer of the judge about a list: `shown` are the answers by number, in the order of the reply's options."""

    instruction: str
    shown: tuple[int, ...]
    reply: Reply

    @property
    def p_a(self) -> float:
        """The probability given to the option shown first."""
        return self.reply.shares[0]

    @property
    def thought(self) -> str:
        """What the judge said before its answer."""
        return self.reply.thought


class Ranking(NamedTuple):
    """All votes on a list; without any (all answers equal) it is undecided."""

    votes: tuple[ListVote, ...]

    @property
    def unparsable(self) -> int:
        """The number of votes that couldn't be read."""
        return sum(not vote.reply.parsed for vote in self.votes)

    @property
    def unread(self) -> str:
        """What the judge answered where it couldn't be read, for one vote."""
        return next((vote.reply.said for vote in self.votes if vote.reply.said), "")

    def scores(self) -> dict[int, float]:
        """Return the mean share of each answer, by number, over all orders and principles; they sum to 1."""
        totals: dict[int, float] = {}
        for vote in self.votes:
            for number, share in zip(vote.shown, vote.reply.shares, strict=True):
                totals[number] = totals.get(number, 0.0) + share
        return {number: total / len(self.votes) for number, total in sorted(totals.items())}


class ListJudge(OptionsJudge):
    """Ranks lists of answers."""

    async def ranking(self, uid: str, prompt: Any, answers: Mapping[int, str], llm: RowLLM, rubric: str = "") -> Ranking:
        """Return the votes on different answers, by number: for each instruction the order as given, then its turns.

        Where one order is asked for, it is drawn.

        Raises:
            ValueError: there are more answers than letters.
        """
        if len(answers) > MOST_OPTIONS:
            raise WrongValue(f"a list holds up to {MOST_OPTIONS} different answers, got {len(answers)}", "judge them in pairs")
        if len(answers) < 2:
            return Ranking(())
        case = Case(prompt, self._shown(uid), llm)
        orders = rotations(tuple(answers)) if self._how.swap else [self.drawn_order(uid, answers)]
        asked = [(i, order) for i in self.instructions(uid, rubric) for order in orders]
        votes = (self._list_vote(n, i, order, answers, case) for n, (i, order) in enumerate(asked))
        return Ranking(tuple(await together(votes)))

    async def _list_vote(
        self, number: int, instruction: Instruction, order: tuple[int, ...], answers: Mapping[int, str], case: Case
    ) -> ListVote:
        reply = await self._reply(number, instruction, [answers[i] for i in order], case)
        return ListVote(instruction.id, order, reply)


def rotations(numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return a list's cyclic orders: each number is once at each place."""
    return [numbers[start:] + numbers[:start] for start in range(len(numbers))]
