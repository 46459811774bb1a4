"""`induce`: finds the principles by which one answer was preferred to another, and writes them as a constitution.

Owns the order of the work, which pairs are held out, and the files; what is asked is in `proposals` and `votes`, what counts as
one statement in `clusters`. Later steps take the constitution by `constitution: {step: NAME}`.

Source: Findeis et al., Inverse Constitutional AI (2406.06560). Here statements are gathered by the letters they share, without
a model of embeddings; each is put to the vote on its own; and it has to win clearly, where a majority is enough there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from caiflow.engine.errors import Finding, StepError
from caiflow.engine.health import Measure
from caiflow.engine.operator import Calls, Expected, Job, LLMs, MetricsOperator, ModelRef, Params, RowsRef, SamplingParams
from caiflow.engine.rows.columns import Row

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import Constitution
    from caiflow.operators.inducing.votes import Tested

PROMPTS = 2
"""What a pair is asked: what speaks for the preferred answer, and what against the other."""


class InduceParams(Params):
    """Fields of `induce`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"op": "induce", "input": "preference", "model": "base", "voters": 200}]}
    )

    input: RowsRef
    """The step with the preferences: rows with `prompt`, `chosen` and `rejected`."""
    model: ModelRef
    """The model that proposes principles and votes on them."""
    sampling: SamplingParams = SamplingParams()
    """How the tokens of proposals are drawn."""
    proposals: int = Field(default=3, ge=1, le=16)
    """Statements asked of each pair, for the preferred answer and as many against the other."""
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
    params_type = InduceParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of a preference."""
        return {self.params.input: ["prompt", "chosen", "rejected"]}

    def check(self) -> Iterator[Finding]:
        """Yield more principles than statements that are tested."""
        if self.params.principles > self.params.candidates:
            told = f"of {self.params.candidates} candidates there can't be {self.params.principles} principles"
            yield Finding(("principles",), told, "raise `candidates`, or ask for fewer")

    def promises(self) -> Constitution:
        """Return as many principles as there may be, each with a text for every stage."""
        from caiflow.engine.constitution.load import Constitution
        from caiflow.operators.inducing.votes import principle

        return Constitution("induced", tuple(principle(f"rule {n}", f"rule-{n}") for n in range(self.params.principles)))

    def calls_expected(self, inputs: Mapping[str, Expected]) -> Calls | None:
        """Return the proposals, the votes on as many statements as are tested, and both orders of each pair held out, twice."""
        if (given := inputs.get(self.params.input)) is None:
            return None
        held = round(given.rows * self.params.held_out)
        voters = min(given.rows - held, self.params.voters or given.rows)
        return Calls((given.rows - held) * PROMPTS + voters * self.params.candidates + 4 * held)

    async def measure(self, job: Job, llms: LLMs) -> Mapping[str, Any]:
        """Return how many held-out preferences the principles predict; write the constitution, the statements and the votes.

        Raises:
            StepError: there are too few pairs, or no statement is voted for.
        """
        from caiflow.operators.inducing import clusters, proposals, votes

        p, seed = self.params, self.context.seed
        pairs = job.inputs[p.input].pylist()
        learnt, held = proposals.divided(pairs, p.held_out, seed)
        if not learnt or not held:
            raise StepError(f"induce: {len(pairs)} pairs are too few to hold some out", "give at least ten, better hundreds")
        said = await proposals.propose(learnt, p.model, p.proposals, p.sampling.sampling(), llms)
        groups = clusters.gathered([statement for _, statement in said], p.similarity)
        tested = await votes.tested(groups[: p.candidates], proposals.drawn(learnt, p.voters, seed), p.model, llms)
        kept = votes.kept(tested, p.relevance, p.principles)
        if not kept:
            advice = "give more pairs, have a stronger model propose and vote, or lower `relevance`"
            raise StepError(_none_left(said, tested), advice)
        found = votes.constitution(kept)
        votes.write(job.out_dir, found, said, tested)
        scored = await votes.reconstructed(held, found, p.model, seed, llms)
        return {
            "reconstruction": scored["constitution"],
            "without": scored["without"],
            "principles": {one.id: test.figures() for one, test in zip(found.principles, kept, strict=True)},
            "statements": len(said),
            "clusters": len(groups),
            "tested": len(tested),
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
        ]  # fmt: skip


def _loss(metrics: Mapping[str, Any]) -> float | None:
    found, without = metrics.get("reconstruction") or {}, metrics.get("without") or {}
    if found.get("rate") is None or without.get("rate") is None:
        return None
    return float(max(0.0, without["rate"] - found["rate"]))


def _none_left(said: Sequence[tuple[Row, str]], tested: Sequence[Tested]) -> str:
    if not said:
        return "induce: no answer of the model has a statement that can be read"
    best = tested[0]
    figures = f"{best.votes_for} for, {best.votes_against} against, of {best.voters} pairs"
    return f"induce: none of {len(tested)} statements was clearly voted for; the best, {best.statement[:80]!r}, had {figures}"
