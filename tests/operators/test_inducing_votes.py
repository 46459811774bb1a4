"""What becomes of votes on statements: which are principles, which are turned down, and what isn't told from chance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from caiflow.engine.health import Meter, notes
from caiflow.engine.operator import StepContext
from caiflow.operators.inducing.clusters import Cluster
from caiflow.operators.inducing.induce import ODDS, Induce, InduceParams
from caiflow.operators.inducing.votes import Tested as Voted
from caiflow.operators.inducing.votes import clear, elected, outstanding
from caiflow.operators.inducing.voting import beyond_others
from caiflow.operators.measures.statistics import wilson

UNRELATED = tuple(f"is {colour}" for colour in ("blue", "red", "green", "grey", "black", "white", "pink", "brown"))


def test_one_that_is_turned_down_takes_no_other_with_it() -> None:
    def votes(told: str) -> tuple[tuple[str, str], ...]:
        return tuple((str(n), {"+": "for", "-": "against", ".": "neither"}[vote]) for n, vote in enumerate(told))

    taste, alike, other, weak = (Voted(Cluster(name, {name: 1}), votes(told)) for name, told in (
        ("is nice", "+" * 60), ("is kind", "+" * 58 + "--"), ("is short", "." * 30 + "+" * 30), ("is red", "+" * 40 + "-" * 20)
    ))  # fmt: skip
    asked: list[str] = []

    async def turned(some: Sequence[Voted]) -> list[Voted]:
        asked.extend(one.statement for one in some)
        return [one._replace(votes=votes("-" * 60)) if one is taste else one for one in some]

    found = asyncio.run(elected([taste, alike, other, weak], 24, 0.1, 1, turned))
    assert (found.kept, [one for one, _ in found.turned_down], asked) == ([alike], [taste], ["is nice", "is kind"])
    assert asyncio.run(elected([taste, alike, other, weak], 24, 0.1, 5, turned)).kept == [alike, other]
    assert asyncio.run(elected([taste, alike, other, weak], 24, 0.1, 5, None)).kept == [taste, other]
    assert asyncio.run(elected([weak], 1, 0.1, 5, None)).kept == [weak], "two thirds of sixty are clear for one alone"
    assert not any(clear(Voted(Cluster("", {}), votes("+" * number))) for number in range(6)), "five tosses may all fall alike"


def test_opposites_that_are_not_read_are_no_principles_however_many_pairs_vote_alike() -> None:
    """What words do is a model's own, and the same in every pair: the pairs are no tosses of a coin then."""
    names, rng = ["a", "b", *UNRELATED], random.Random(4)
    assert beyond_others([0.5, 0.4, *[0.1] * 8], names, UNRELATED)[:2] == [0.4, 0.3], "both go for what any words push"
    assert beyond_others([0.5, 0.4, 0.1], names[:3], ()) == [0.1, 0.0, -0.3], (
        "the median is that of all where none is unrelated"
    )
    noise = [beyond_others([rng.gauss(0, 1) for _ in names], names, UNRELATED)[:2] for _ in range(1000)]
    assert sum(one * other < 0 for one, other in noise) < 0.53 * len(noise), "votes turn by chance in half of the pairs at most"

    def kept(gains: Sequence[float]) -> list[str]:
        told = [Voted(Cluster(name, {}), (("1", "for"),), gain) for name, gain in zip(names, gains, strict=True)]
        return [one.statement for one in outstanding(told, {"a": "b", "b": "a"}, UNRELATED)]

    assert kept([0.3, -0.3, *[0.1, -0.1] * 4]) == ["a"]
    assert kept([0.3, -0.05, *[0.1, -0.1] * 4]) == kept([0.05, -0.3, *[0.1, -0.1] * 4]) == []
    by_chance = sum(bool(kept([rng.gauss(0, 1) for _ in names])) for _ in range(2000))
    assert by_chance < 2 * 2000 / ODDS, "one in 45 is awaited"


def test_votes_that_stay_when_the_question_is_turned_round_are_counted_and_noted() -> None:
    told = tuple((str(n), "for") for n in range(40))
    kept, taste = (Voted(Cluster(name, {name: 1}), told) for name in ("is short", "is nice"))

    async def turned(some: Sequence[Voted]) -> list[Voted]:
        votes = {"is short": ("for",) * 30 + ("neither",) * 10, "is nice": ("against",) * 40}
        return [
            one._replace(votes=tuple((uid, vote) for (uid, _), vote in zip(told, votes[one.statement], strict=True)))
            for one in some
        ]

    found = [asyncio.run(elected([one], 1, 0.1, 5, turned)) for one in (kept, taste)]
    assert [(one.unmoved, one.both) for one in found] == [(0, 30), (40, 40)]
    assert asyncio.run(elected([taste], 1, 0.1, 5, None)).both == 0, "nothing was asked the other way round"
    measures = Induce(InduceParams(input="p", model="m"), StepContext()).measures()
    noted = {
        told: [note["message"] for note in notes(measures, Meter(measures).readings({"unmoved": wilson(*told).as_dict()}))]
        for told in ((0, 0), (24, 64), (25, 64), (64, 64))
    }
    assert [told for told, messages in noted.items() if messages] == [(25, 64), (64, 64)], "of 64 tosses 24 are clearly few"
    assert "chance does as much: the model doesn't read what it is to go by" in noted[64, 64][0]
