"""Statements put to the vote of pairs, and what becomes of those that win: principles, and how well they predict.

Owns what is kept, and the files beside the figures; how a pair votes is in `voting`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import comb, inf
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine.constitution.load import MADE, Constitution, Principle, dump, rule_texts
from caiflow.engine.constitution.others_names import slug
from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import RowsWriter
from caiflow.operators.inducing.clusters import Cluster
from caiflow.operators.inducing.voting import DIGITS, by_letters, by_likelihood, fitting, gains, leads
from caiflow.operators.judging.options import Judging
from caiflow.operators.judging.pairwise import PairJudge
from caiflow.operators.measures.statistics import wilson

PLAIN = "Which response is better?"
SAME = 0.8
"""From this share of equal votes on, two statements are one principle."""
_CHANCE = 0.025


class Tested(NamedTuple):
    """A statement and how the pairs voted: for what was preferred, against it, or for neither."""

    cluster: Cluster
    votes: tuple[tuple[str, str], ...]
    """(uid, vote) of each pair; a vote is for, against, neither or unread."""
    gain: float = 0.0
    """By likelihood: what it does for what was preferred, in nats per token, the mean of the pairs."""

    @property
    def statement(self) -> str:
        """What was put to the vote."""
        return self.cluster.statement

    @property
    def voters(self) -> int:
        """How many pairs were asked."""
        return len(self.votes)

    @property
    def votes_for(self) -> int:
        """How many go with the preference."""
        return sum(vote == "for" for _, vote in self.votes)

    @property
    def votes_against(self) -> int:
        """How many go against it."""
        return sum(vote == "against" for _, vote in self.votes)

    @property
    def cast(self) -> int:
        """How many go with it or against it."""
        return self.votes_for + self.votes_against

    def figures(self) -> dict[str, Any]:
        """Return its statement and votes: `agreement` is the share of the votes cast that go with the preference."""
        return {
            "statement": self.statement,
            "for": self.votes_for,
            "against": self.votes_against,
            "relevance": wilson(self.cast, self.voters).as_dict(),
            "agreement": wilson(self.votes_for, self.cast).as_dict(),
            "proposed": self.cluster.size,
        }


Turned = Callable[[Sequence[Tested]], Awaitable[Sequence[Tested]]]
"""Gives statements their votes when the worse response is asked for."""


async def tested(
    clusters: Sequence[Cluster], unrelated: Sequence[str], pairs: Sequence[Row], voting: str, model: str, llms: LLMs
) -> list[Tested]:
    """Return the statements with their votes, those with the most votes for them beyond those against first."""
    statements = [cluster.statement for cluster in clusters]
    gained: dict[str, float] = {}
    if voting == "letters":
        cast = await by_letters(pairs, statements, model, llms)
    else:
        cast, gained = await by_likelihood(pairs, statements, unrelated, model, llms)
    made = [Tested(cluster, cast[cluster.statement], gained.get(cluster.statement, 0.0)) for cluster in clusters]
    return sorted(made, key=lambda one: (one.votes_against - one.votes_for, -one.cluster.size, one.statement))


async def turned_round(some: Sequence[Tested], pairs: Sequence[Row], model: str, llms: LLMs) -> list[Tested]:
    """Return the statements with the votes of the same pairs when the worse response is asked for.

    A model that has its own taste, whatever it is asked to go by, names the same response again.
    """
    cast = await by_letters(pairs, [one.statement for one in some], model, llms, "worse")
    return [one._replace(votes=cast[one.statement]) for one in some]


def opposed(opposites: Mapping[str, str], tested: Sequence[Tested]) -> Turned:
    """Give statements the votes against their opposites as votes for them; one without an opposite keeps its own."""
    cast = {one.statement: one.votes for one in tested}
    over = {"for": "against", "against": "for"}

    async def turned(some: Sequence[Tested]) -> list[Tested]:
        facing = [cast.get(opposites.get(one.statement, "")) for one in some]
        told = [votes and tuple((uid, over.get(vote, vote)) for uid, vote in votes) for votes in facing]
        return [one._replace(votes=votes) if votes else one for one, votes in zip(some, told, strict=True)]

    return turned


def outstanding(tested: Sequence[Tested], opposites: Mapping[str, str], unrelated: Sequence[str]) -> list[Tested]:
    """Return the statements that gain more than each that is unrelated, whose opposites gain less than each.

    A model that reads nothing is moved by words all the same, and by the same ones in every pair: that many pairs vote alike
    says little then. But an unread statement and its opposite are the first and the last of `n` unrelated ones and these two
    but once in (n + 1)(n + 2).
    """
    lead = {one.statement: one.gain for one in tested}
    beside = [lead[text] for text in unrelated]
    most, least = max(beside, default=-inf), min(beside, default=inf)
    ahead = [one for one in tested if lead[one.statement] > most]
    return [one for one in ahead if lead.get(opposites.get(one.statement, ""), -inf) < least]


class Elected(NamedTuple):
    """The statements that are principles, the best first, and those turned down, with their votes turned round.

    `unmoved` of `both` votes of all these name the same response when asked the other way round: half or more of those of a
    model that doesn't read what it goes by.
    """

    kept: list[Tested]
    turned_down: list[tuple[Tested, Tested]]
    unmoved: int = 0
    both: int = 0


async def elected(tested: Sequence[Tested], proposed: int, relevance: float, most: int, turned: Turned | None) -> Elected:
    """Return the statements, of so many proposed, that the votes are clearly for and that bear upon enough pairs.

    With `turned` they have to win when it is asked the other way round, too. Of those that win and vote alike the best is
    kept, however they are worded.
    """
    waiting = [one for one in tested if one.cast >= relevance * one.voters and clear(one, proposed)]
    kept: list[Tested] = []
    down: list[tuple[Tested, Tested]] = []
    both: list[bool] = []
    while len(kept) < most and (asked := _distinct(waiting, kept)[: most - len(kept)]):
        for one, other in zip(asked, await turned(asked) if turned else asked, strict=True):
            both += _moves(one, other) if other is not one else []
            if clear(other):
                kept.append(one)
            else:
                down.append((one, other))
        waiting = [one for one in waiting if one not in asked]
    return Elected([one for one in tested if one in kept], down, both.count(False), len(both))


def _moves(one: Tested, other: Tested) -> list[bool]:
    """Return of each pair that votes both times whether it goes by the statement both times."""
    told = zip(one.votes, other.votes, strict=True)
    return [a == b for (_, a), (_, b) in told if {a, b} <= {"for", "against"}]


def _distinct(waiting: Sequence[Tested], kept: Sequence[Tested]) -> list[Tested]:
    """Return those that vote like none that is kept, nor like one before them."""
    found: list[Tested] = []
    for one in waiting:
        if not any(alike(one, other) >= SAME for other in (*kept, *found)):
            found.append(one)
    return found


def clear(one: Tested, of: int = 1) -> bool:
    """Return whether the votes for a statement, of those cast, are more than chance gives one of so many statements.

    Were each vote a toss of a coin, one of them all would be let through in a fortieth of the cases at the most (the binomial
    tail, and Bonferroni's bound). What the same pairs proposed isn't independent of their votes, so all that was proposed
    counts, and not only what was tested.
    """
    least, cast = one.votes_for, one.cast
    ways = total = comb(cast, least)
    for number in range(least, cast):
        ways = ways * (cast - number) // (number + 1)
        total += ways
    return bool(total / 2**cast <= _CHANCE / of)


def alike(one: Tested, other: Tested) -> float:
    """Return the share of equal votes among the pairs that either bears upon."""
    told = [(a, b) for (_, a), (_, b) in zip(one.votes, other.votes, strict=True) if {a, b} & {"for", "against"}]
    return sum(a == b for a, b in told) / len(told) if told else 0.0


def principle(statement: str, name: str, guards: str = "") -> Principle:
    """Return a statement as a principle with a text for each stage."""
    return Principle(id=name, guards=guards, **rule_texts(f"the better response {statement}"))


def constitution(kept: Sequence[Tested]) -> Constitution:
    """Return the statements as principles, in their order; each says how it was voted on, for the reader."""
    names: list[str] = []
    for one in kept:
        name = slug(one.statement) or "rule"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    told = (f"{one.votes_for} votes for it, {one.votes_against} against, of {one.voters} pairs" for one in kept)
    made = (principle(one.statement, name, said) for one, name, said in zip(kept, names, told, strict=True))
    return Constitution("induced", tuple(made), description="Principles found in preferences.")


async def reconstructed(
    held: Sequence[Row], found: Constitution, model: str, seed: int, llms: LLMs
) -> dict[str, dict[str, Any]]:
    """Return the share of held-out preferences that a judge predicts under the whole constitution, and `without` any.

    Both orders of a pair are judged; a pair that comes out undecided counts half.
    """
    judges = {
        "constitution": PairJudge(Judging(principles="all"), found, seed),
        "without": PairJudge(Judging(), None, seed, PLAIN),
    }
    figures = {}
    for name, judge in judges.items():

        async def ask(row: Row, llm: RowLLM, judge: PairJudge = judge) -> Row:
            verdict = await fitting(judge.verdict(str(row["uid"]), row["prompt"], (row["chosen"], row["rejected"]), llm))
            return {"lead": 0.0 if verdict is None or verdict.unparsable else verdict.p_first - 0.5}

        given = await llms.map(f"reconstruct {name}", model, held, ask)
        figures[name] = _predicted([float(one["lead"]) for one in given])
    return figures


async def more_likely(
    held: Sequence[Row],
    kept: Sequence[Tested],
    tested: Sequence[Tested],
    unrelated: Sequence[str],
    model: str,
    llms: LLMs,
) -> dict[str, dict[str, Any]]:
    """Return the share of held-out preferences whose answer gains more by the statements kept, or is likelier `without` any.

    All statements that were tested are asked of each pair, since what they all do alike is taken off.
    """
    texts, wanted = [one.statement for one in tested], {one.statement for one in kept}
    rows = await gains(held, texts, unrelated, model, llms)
    sums = [sum(gain for text, gain in zip(texts, row, strict=True) if text in wanted) for row in rows if row is not None]
    plain = [lead for lead in await leads(held, model, llms) if lead is not None]
    return {"constitution": _predicted([round(one, DIGITS) for one in sums]), "without": _predicted(plain)}


def _predicted(leads: Sequence[float]) -> dict[str, Any]:
    return wilson(sum((lead > 0) + (lead == 0) / 2 for lead in leads), len(leads)).as_dict()


def write(folder: Path, found: Constitution, said: Sequence[tuple[Row, str]], tested: Sequence[Tested]) -> None:
    """Write the constitution, each statement with its pair and the wording that was voted on, and each vote."""
    (folder / MADE).write_text(dump(found), encoding="utf-8")
    heads = {text: one.statement for one in tested for text in one.cluster.members}
    heads |= {one.statement: one.statement for one in tested}
    with RowsWriter(folder / "statements", {"uid": "text", "statement": "text", "tested_as": "text"}) as out:
        out.write_rows([{"uid": str(row["uid"]), "statement": text, "tested_as": heads.get(text)} for row, text in said])
    with RowsWriter(folder / "votes", {"uid": "text", "statement": "text", "vote": "text"}) as out:
        out.write_rows([{"uid": uid, "statement": one.statement, "vote": vote} for one in tested for uid, vote in one.votes])
