"""`induce`: finds the principles by which one answer was preferred to another, and writes them as a constitution.

Owns the order of the work, which pairs are held out, and the files; what is asked is in `proposals` and `votes`, what counts as
one statement in `clusters`. Later steps take the constitution by `constitution: {step: NAME}`.

Source: Findeis et al., Inverse Constitutional AI (2406.06560). Here statements are gathered by the letters they share, without
a model of embeddings; each is put to the vote on its own; and it has to win clearly, where a majority is enough there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from caiflow.engine.errors import Finding, StepError
from caiflow.engine.health import Measure
from caiflow.engine.operator import Calls, Expected, Job, LLMs, MetricsOperator, ModelRef, Params, RowsRef, SamplingParams

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import Constitution
    from caiflow.operators.inducing.votes import Tested

ADVICE = "give more pairs, have a stronger model propose and vote, take `vote: likelihood`, or lower `relevance`"
PROMPTS = 2
"""What a pair is asked: what speaks for the preferred answer, and what against the other."""


ODDS = 40
"""One of the opposites that are given stands out from unrelated statements by chance in no more than one of so many steps."""


class InduceParams(Params):
    """Fields of `induce`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"op": "induce", "input": "preference", "model": "base", "voters": 200},
                {
                    "op": "induce",
                    "input": "preference",
                    "model": "base",
                    "vote": "likelihood",
                    "proposals": 0,
                    "opposites": {"is longer": "is shorter"},
                    "unrelated": [
                        *("speaks of the sea", "names a colour", "is in verse", "gives a number"),
                        *("names a town", "speaks of music", "names a tool", "tells a dream"),
                    ],
                },
            ]
        }
    )

    input: RowsRef
    """The step with the preferences: rows with `prompt`, `chosen` and `rejected`."""
    model: ModelRef
    """The model that proposes principles and votes on them."""
    sampling: SamplingParams = SamplingParams()
    """How the tokens of proposals are drawn."""
    proposals: int = Field(default=3, ge=0, le=16)
    """Statements asked of each pair, for the preferred answer and as many against the other; 0 tests `statements` alone."""
    statements: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Further statements put to the vote, in words that go on from `the better response`: `is shorter`."""
    opposites: dict[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Further statements, each with its opposite: `{is longer: is shorter}`; both are put to the vote.

    With `vote: likelihood` a statement is kept only where its opposite is clearly voted against: whoever votes for both reads
    neither. Both are held against statements that are `unrelated`.
    """
    unrelated: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Statements that have nothing to do with what is looked for, for `vote: likelihood`: `speaks of the sea`.

    None is kept. What they do is taken off what others do, and a statement is kept only where it does more for the preferred
    answers than each of them, and its opposite less. A pair votes only on what does more there, or less, than each of them.
    """
    vote: Literal["letters", "likelihood"] = "letters"
    """`letters` asks in both orders which response is better by a statement, and of those that win also which is worse;
    `likelihood` compares how likely the answers are where such a response is asked for, which small models can tell.

    The latter takes a model that gives the log-probabilities of a prompt: all that run here, few servers.
    """
    similarity: float = Field(default=0.5, gt=0, le=1)
    """From this likeness (0 to 1: runs of letters shared, rare ones more) on, two statements are taken for one."""
    candidates: int = Field(default=24, ge=1, le=1000)
    """Statements put to the vote at the most: those that were proposed most often."""
    voters: int | None = Field(default=None, ge=1)
    """Pairs that vote, drawn; by default all that aren't held out."""
    relevance: float = Field(default=0.1, ge=0, le=1)
    """Share of the voting pairs that a principle must bear upon."""
    principles: int = Field(default=5, ge=1, le=100)
    """Principles at the most: those with the most votes for them beyond those against, of statements clearly voted for."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the pairs, drawn, that neither propose nor vote: how many of them the constitution predicts is measured."""


class Induce(MetricsOperator[InduceParams]):
    """Find the principles behind preferences, as a constitution for later steps (`constitution: {step: NAME}`)."""

    name = "induce"
    version = 5
    params_type = InduceParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of a preference."""
        return {self.params.input: ["prompt", "chosen", "rejected"]}

    def check(self) -> Iterator[Finding]:
        """Yield more principles than statements that are tested, and likelihoods with nothing to compare."""
        p = self.params
        if "principles" in p.model_fields_set and p.principles > self._tested():
            told = f"of {self._tested()} statements there can't be {p.principles} principles"
            yield Finding(("principles",), told, "raise `candidates`, give `statements`, or ask for fewer")
        if p.vote == "likelihood" and self._tested() < 2:
            told = "likelihoods are compared between statements, and there is one"
            yield Finding(("vote",), told, "give several, better as `opposites` beside some that are `unrelated`")
        if p.unrelated and p.vote == "letters":
            told = "letters aren't compared between statements"
            yield Finding(("unrelated",), told, "take `vote: likelihood`, or leave it out")
        paired, beside = len(self._opposites()), len(self._written(p.unrelated))
        least = next(n for n in count() if (n + 1) * (n + 2) >= ODDS * paired)
        if p.vote == "likelihood" and beside < least:
            told = (
                f"to tell {paired} statements with an opposite from chance takes {least} unrelated ones, and there are {beside}"
            )
            yield Finding(("unrelated",), told, f"give {least - beside} more that have nothing to do with what you look for")

    def _tested(self) -> int:
        """Return how many statements are put to the vote at the most."""
        return (self.params.candidates if self.params.proposals else 0) + len(self._given())

    def _given(self) -> list[str]:
        """Return the statements given, written as those that are proposed are."""
        p = self.params
        return self._written([*p.statements, *(text for both in p.opposites.items() for text in both), *p.unrelated])

    def _written(self, told: Sequence[str]) -> list[str]:
        from caiflow.operators.inducing.proposals import statements

        return list(dict.fromkeys(line for text in told for line in statements(text) or [text]))

    def _opposites(self) -> dict[str, str]:
        """Return the opposite of each statement that has one, either way round, written as the statements given are."""
        said = {self._written([one])[0]: self._written([other])[0] for one, other in self.params.opposites.items()}
        return {other: one for one, other in said.items()} | said

    def promises(self) -> Constitution:
        """Return as many principles as there may be, each with a text for every stage."""
        from caiflow.engine.constitution.load import Constitution
        from caiflow.operators.inducing.votes import principle

        return Constitution("induced", tuple(principle(f"rule {n}", f"rule-{n}") for n in range(self.params.principles)))

    def calls_expected(self, inputs: Mapping[str, Expected]) -> Calls | None:
        """Return the proposals, two questions for each vote either way round, and those on the pairs held out."""
        p = self.params
        if (given := inputs.get(p.input)) is None:
            return None
        held, tested = round(given.rows * p.held_out), self._tested()
        voters = min(given.rows - held, p.voters or given.rows)
        proposing = (given.rows - held) * PROMPTS if p.proposals else 0
        if p.vote == "likelihood":
            return Calls(proposing + 2 * tested * voters + 2 * (tested + 1) * held)
        return Calls(proposing + 2 * 2 * tested * voters + 4 * held)

    async def measure(self, job: Job, llms: LLMs) -> Mapping[str, Any]:
        """Return how many held-out preferences the principles predict; write the constitution, the statements and the votes.

        Raises:
            StepError: there are too few pairs, or no statement is voted for.
        """
        from caiflow.operators.inducing import clusters, proposals, votes
        from caiflow.operators.measures.statistics import wilson

        p, seed = self.params, self.context.seed
        opposites, unrelated = self._opposites(), self._written(p.unrelated)
        pairs = job.inputs[p.input].pylist()
        learnt, held = proposals.divided(pairs, p.held_out, seed)
        if not learnt or not held:
            raise StepError(f"induce: {len(pairs)} pairs are too few to hold some out", "give at least ten, better hundreds")
        said = await proposals.propose(learnt, p.model, p.proposals, p.sampling.sampling(), llms) if p.proposals else []
        groups = clusters.gathered([statement for _, statement in said], p.similarity)
        voters = proposals.drawn(learnt, p.voters, seed)
        put = clusters.beside(groups, p.candidates, self._given())
        tested = await votes.tested(put, unrelated, voters, p.vote, p.model, llms)
        by_letters = partial(votes.turned_round, pairs=voters, model=p.model, llms=llms)
        turned: votes.Turned = by_letters if p.vote == "letters" else votes.opposed(opposites, tested)
        ahead = votes.outstanding(tested, opposites, unrelated)
        proposed = len(put) + max(0, len(groups) - p.candidates)
        kept, turned_down, unmoved, both = await votes.elected(ahead, proposed, p.relevance, p.principles, turned)
        if not kept:
            raise StepError(_none_left(tested, turned_down, p.vote, () if ahead else unrelated), ADVICE)
        found = votes.constitution(kept)
        votes.write(job.out_dir, found, said, tested)
        if p.vote == "letters":
            scored = await votes.reconstructed(held, found, p.model, seed, llms)
        else:
            scored = await votes.more_likely(held, kept, tested, unrelated, p.model, llms)
        return {
            "reconstruction": scored["constitution"],
            "without": scored["without"],
            "principles": {one.id: test.figures() for one, test in zip(found.principles, kept, strict=True)},
            "statements": len(said),
            "clusters": len(groups),
            "tested": len(tested),
            "turned_down": [one.statement for one, _ in turned_down],
            "unmoved": wilson(unmoved, both).as_dict(),
            "pairs": {"learnt": len(learnt), "held_out": len(held)},
        }

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with a constitution: that it predicts no better than none."""
        return [
            Measure(
                "no_better", "<= 0", "held-out preferences that the judge predicts better without the principles (share)",
                "the principles don't say what was preferred", "give more pairs, or have a stronger model propose and vote",
                figure=_loss,
            ),
            Measure(
                "unmoved", "< 50%",
                "votes that name the same response when the question, or the statement, is turned round (share, at the most)",
                "chance does as much: the model doesn't read what it is to go by",
                "have a stronger model vote, or one that was taught to",
                figure=_unmoved,
            ),
        ]  # fmt: skip


def _loss(metrics: Mapping[str, Any]) -> float | None:
    found, without = metrics.get("reconstruction") or {}, metrics.get("without") or {}
    if found.get("rate") is None or without.get("rate") is None:
        return None
    return float(max(0.0, without["rate"] - found["rate"]))


def _unmoved(metrics: Mapping[str, Any]) -> float | None:
    """Return the upper end of the share's interval: what doesn't lie clearly below half may be chance's."""
    found = metrics.get("unmoved") or {}
    return found["high"] if found.get("n") else None


def _none_left(
    tested: Sequence[Tested], turned_down: Sequence[tuple[Tested, Tested]], voting: str, unrelated: Sequence[str]
) -> str:
    if not tested:
        return "induce: no answer of the model has a statement that can be read"
    if turned_down:
        (first, other), *_ = turned_down
        statement, against, cast = first.statement[:80], other.votes_against, other.cast
        if voting == "likelihood":
            told = f"for {statement!r} are {first.votes_for} of {first.voters} pairs, and for its opposite {against} of {cast}"
            return f"induce: the model doesn't tell a statement from its opposite: {told}"
        if against > other.votes_for:
            told = f"the better response by {statement!r} is the worse one by it, too, in {against} of {cast} votes"
            return f"induce: the model votes alike whatever it is asked: {told}"
        told = f"{other.votes_for} of its answers agree, {against} don't, of {other.voters} pairs"
        return f"induce: the model tells the better response by {statement!r}, but not the worse one: {told}"
    if unrelated:
        own, others = ([one.gain for one in tested if (one.statement in unrelated) == there] for there in (False, True))
        told = f"those do {min(others):.3f} to {max(others):.3f} nats per token for what was preferred"
        told = f"{told}, these {min(own):.3f} to {max(own):.3f}"
        return f"induce: none of {len(own)} statements is ahead of all unrelated ones, and its opposite behind them: {told}"
    best = tested[0]
    figures = f"{best.votes_for} for, {best.votes_against} against, of {best.voters} pairs"
    return f"induce: none of {len(tested)} statements was clearly voted for; the best, {best.statement[:80]!r}, had {figures}"
