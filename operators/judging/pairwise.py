"""How a model is asked which of two answers is better, and how its votes become one probability.

Owns the orders in which a pair is shown and the average. Both orders are always asked under the same principle, so that
position and principle can't be confounded. Never decides what a tie or an unreadable answer means for a data set: the operators
do.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.operator import RowLLM, together
from caiflow.operators.judging.options import Case, Instruction, OptionsJudge

if TYPE_CHECKING:
    from caiflow.operators.measures.effects import JudgedVote


class Vote(NamedTuple):
    """One answer of the judge: the probability (0..1) that it gives to option A as it was shown.

    `swapped` says that option A was the pair's second answer. `logprobs` are those of A and B (natural; None for text votes and
    averages over thoughts). An answer that names neither option, or both, isn't `parsed` and has probability 0.5.
    """

    instruction: str
    swapped: bool
    p_a: float
    parsed: bool = True
    logprobs: tuple[float, float] | None = None
    thought: str = ""
    said: str = ""
    """What couldn't be read."""

    @property
    def p_first(self) -> float:
        """The probability given to the pair's first answer."""
        return 1 - self.p_a if self.swapped else self.p_a


class Verdict(NamedTuple):
    """All votes on one pair; without any (equal answers) it is undecided."""

    votes: tuple[Vote, ...]

    @property
    def p_first(self) -> float:
        """The mean probability that the first answer is better: scores of all orders and principles added, then shared out."""
        return sum(v.p_first for v in self.votes) / len(self.votes) if self.votes else 0.5

    @property
    def unparsable(self) -> int:
        """The number of votes that couldn't be read."""
        return sum(not v.parsed for v in self.votes)

    @property
    def unread(self) -> str:
        """What the judge answered where it couldn't be read, for one vote."""
        return next((vote.said for vote in self.votes if vote.said), "")


class PairJudge(OptionsJudge):
    """Gives a verdict on pairs of answers."""

    async def verdict(self, uid: str, prompt: Any, pair: tuple[str, str], llm: RowLLM, rubric: str = "") -> Verdict:
        """Return the votes on a pair: for each instruction the order as given, then the other; none where both are equal.

        Where one order is asked for, it is drawn.
        """
        if pair[0] == pair[1]:
            return Verdict(())
        case = Case(prompt, self._shown(uid), llm)
        orders = (False, True) if self._how.swap else (self.drawn_order(uid, dict(enumerate(pair)))[0] == 1,)
        asked = [(i, swapped) for i in self.instructions(uid, rubric) for swapped in orders]
        votes = (self._vote(number, i, s, pair, case) for number, (i, s) in enumerate(asked))
        return Verdict(tuple(await together(votes)))

    async def _vote(self, number: int, instruction: Instruction, swapped: bool, pair: tuple[str, str], case: Case) -> Vote:
        options = (pair[1], pair[0]) if swapped else pair
        reply = await self._reply(number, instruction, options, case)
        logprobs = None if reply.logprobs is None else (reply.logprobs[0], reply.logprobs[1])
        return Vote(instruction.id, swapped, reply.shares[0], reply.parsed, logprobs, reply.thought, reply.said)


def judged_votes(uid: str, pair: tuple[str, str], verdict: Verdict, sides: Mapping[str, float]) -> list[JudgedVote]:
    """Return the readable votes on a pair with what may have moved them.

    `sides` are the effects that take its first answer's side (1), or the other's (-1).
    """
    from caiflow.operators.measures.effects import JudgedVote

    longer = log2((len(pair[0]) + 1) / (len(pair[1]) + 1))
    found = []
    for vote in verdict.votes:
        side = -1.0 if vote.swapped else 1.0
        weights = {"position": 1.0, **{name: side * value for name, value in {"length": longer, **sides}.items()}}
        found += [JudgedVote(uid, vote.p_a, weights)] if vote.parsed else []
    return found
