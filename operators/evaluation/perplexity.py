"""Perplexity on given texts: whether a trained model still expects what its base expected (capability drift).

Owns which texts are scored and what their log-probabilities amount to. Of a conversation the assistant's words count, each turn
given all before it; of a plain text every token after the first. Per-token figures compare models of one tokenizer only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.operators.evaluation.attempts import answered, attempted
from caiflow.operators.evaluation.params import PerplexityParams
from caiflow.operators.judging.prompts import turns
from caiflow.operators.measures.statistics import bootstrap_ratio

COLUMNS: Mapping[str, Any] = {
    "uid": "text",
    "texts": "text",
    "model": "text",
    "nll": "number",
    "tokens": "integer",
    "failed": "text",
}
"""The columns of the scored texts kept beside the figures; `nll` is a text's negative log-likelihood in nats."""


async def score(name: str, how: PerplexityParams, rows: Sequence[Row], model: str, llms: LLMs) -> list[Row]:
    """Return, for each text, its negative log-likelihood and the tokens it is summed over."""

    async def ask(row: Row, llm: RowLLM) -> Row:
        given = row[how.column] or ""
        answer = await llm.score(given if isinstance(given, str) else turns(given))
        values = answer.prompt_logprobs or ()
        return {"nll": -sum(values), "tokens": len(values)}

    found = await llms.map("perplexity", model, rows, attempted(ask, {"nll": None, "tokens": 0}))
    return [{"uid": row["uid"], "texts": name, "model": model, **scored} for row, scored in zip(rows, found, strict=True)]


def figures(rows: Sequence[Row], reference: Sequence[Row], seed: int) -> dict[str, Any]:
    """Return perplexity and loss per token (nats), with bootstrap intervals over texts, and the drift from a reference model.

    `rows` and `reference` are of the same texts in the same order. `drift` is the change of the loss per token, paired text by
    text; left out for the reference itself and where the two count tokens differently.
    """
    drift = _drift(rows, reference, seed)
    rows = answered(rows)
    if not rows:
        return {"perplexity": None, "tokens": 0, "n": 0}
    loss = bootstrap_ratio([r["nll"] for r in rows], [r["tokens"] for r in rows], seed=seed)
    found: dict[str, Any] = {
        "perplexity": exp(loss.mean),
        "low": exp(loss.low),
        "high": exp(loss.high),
        "nll_per_token": loss.mean,
        "nll_low": loss.low,
        "nll_high": loss.high,
        "tokens": sum(r["tokens"] for r in rows),
        "n": loss.n,
    }
    return {**found, "drift": drift} if drift else found


def _drift(rows: Sequence[Row], reference: Sequence[Row], seed: int) -> dict[str, Any] | None:
    both = [(new, old) for new, old in zip(rows, reference, strict=True) if not new["failed"] and not old["failed"]]
    if not both or any(new["model"] == old["model"] or new["tokens"] != old["tokens"] for new, old in both):
        return None
    changes = [new["nll"] - old["nll"] for new, old in both]
    return bootstrap_ratio(changes, [new["tokens"] for new, _ in both], seed=seed).as_dict()
