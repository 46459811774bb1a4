"""Statements put to the vote of pairs, and what becomes of those that win: principles, and how well they predict.

Owns what is asked of each pair, what is kept, and the files beside the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine.constitution.load import MADE, Constitution, Principle, dump, rule_texts
from caiflow.engine.constitution.others_names import slug
from caiflow.engine.identity import digest
from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import RowsWriter
from caiflow.operators.inducing.clusters import Cluster
from caiflow.operators.inducing.proposals import chosen_first
from caiflow.operators.judging.options import Judging
from caiflow.operators.judging.pairwise import PairJudge
from caiflow.operators.judging.phrases import parse_choice
from caiflow.operators.judging.prompts import JUDGE_PREFILL, judge_message
from caiflow.operators.measures.statistics import wilson

VOTE = """\
Somebody holds that the better response {statement}. Go by this alone, whatever else speaks for either response. Which \
response is the better one by it? Choose (C) where it does not apply, or holds for both alike."""
NEITHER = "Neither: it does not tell them apart."
PLAIN = "Which response is better?"
SAME = 0.8
"""From this share of equal votes on, two statements are one principle."""


class Tested(NamedTuple):
    """A statement and how the pairs voted: for what was preferred, against it, or for neither."""

    cluster: Cluster
    votes: tuple[tuple[str, str], ...]
    """(uid, vote) of each pair; a vote is for, against, neither or unread."""

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

    def figures(self) -> dict[str, Any]:
        """Return its statement and votes: `agreement` is the share of the votes cast that go with the preference."""
        cast = self.votes_for + self.votes_against
        return {
            "statement": self.statement,
            "for": self.votes_for,
            "against": self.votes_against,
            "relevance": wilson(cast, self.voters).as_dict(),
            "agreement": wilson(self.votes_for, cast).as_dict(),
            "proposed": self.cluster.size,
        }


async def tested(clusters: Sequence[Cluster], pairs: Sequence[Row], model: str, llms: LLMs) -> list[Tested]:
    """Return the statements with their votes, those with the most votes for them beyond those against first."""
    asked = [
        {**pair, "uid": f"{pair['uid']}/{digest(cluster.statement)[:12]}", "pair": pair["uid"], "statement": cluster.statement}
        for pair in pairs
        for cluster in clusters
    ]
    found = await llms.map("vote", model, asked, _vote)
    cast: dict[str, list[tuple[str, str]]] = {cluster.statement: [] for cluster in clusters}
    for row, given in zip(asked, found, strict=True):
        cast[row["statement"]].append((str(row["pair"]), given["vote"]))
    made = [Tested(cluster, tuple(cast[cluster.statement])) for cluster in clusters]
    return sorted(made, key=lambda one: (one.votes_against - one.votes_for, -one.cluster.size, one.statement))


async def _vote(row: Row, llm: RowLLM) -> Row:
    first = chosen_first(row, "vote")
    options = (row["chosen"], row["rejected"]) if first else (row["rejected"], row["chosen"])
    asked = [judge_message(row["prompt"], VOTE.format(statement=row["statement"]), (*options, NEITHER))]
    answer = await llm.pick(asked, ("A", "B", "C"), prefill=JUDGE_PREFILL)
    if (given := answer.logprobs) is not None:
        named: str | None = max("ABC", key=lambda letter: given[letter])
    else:
        named = parse_choice(answer.text, "ABC")
    if not named:
        return {"vote": "unread"}
    return {"vote": "neither" if named == "C" else "for" if (named == "A") == first else "against"}


def kept(tested: Sequence[Tested], relevance: float, most: int) -> list[Tested]:
    """Return the statements that the votes are clearly for and that bear upon enough pairs, the best first.

    Clearly: the 95% interval of the votes for it, of those cast, lies above one half. Of statements that vote alike the best is
    kept, however they are worded.
    """
    found: list[Tested] = []
    for one in tested:
        cast = one.votes_for + one.votes_against
        clear = wilson(one.votes_for, cast).low > 0.5 and cast >= relevance * one.voters
        if clear and not any(alike(one, other) >= SAME for other in found):
            found.append(one)
    return found[:most]


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
            verdict = await judge.verdict(str(row["uid"]), row["prompt"], (row["chosen"], row["rejected"]), llm)
            return {"p": 0.5 if verdict.unparsable else verdict.p_first}

        given = await llms.map(f"reconstruct {name}", model, held, ask)
        figures[name] = wilson(sum((one["p"] > 0.5) + (one["p"] == 0.5) / 2 for one in given), len(given)).as_dict()
    return figures


def write(folder: Path, found: Constitution, said: Sequence[tuple[Row, str]], tested: Sequence[Tested]) -> None:
    """Write the constitution, each statement with its pair and the wording that was voted on, and each vote."""
    (folder / MADE).write_text(dump(found), encoding="utf-8")
    heads = {text: one.statement for one in tested for text in one.cluster.members}
    with RowsWriter(folder / "statements", {"uid": "text", "statement": "text", "tested_as": "text"}) as out:
        out.write_rows([{"uid": str(row["uid"]), "statement": text, "tested_as": heads.get(text)} for row, text in said])
    with RowsWriter(folder / "votes", {"uid": "text", "statement": "text", "vote": "text"}) as out:
        out.write_rows([{"uid": uid, "statement": one.statement, "vote": vote} for one in tested for uid, vote in one.votes])
