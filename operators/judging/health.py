"""Health measures of judgements: a judge that goes by position or length, or tells nothing.

Owns their bounds and sentences; the figures are those of `verdicts`, and rows to look at come out of the same evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from caiflow.engine.health import Measure, Passed, RowValue
from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.verdicts import STUCK, TIE, TIE_EQUAL, UNPARSABLE, Evidence
from caiflow.operators.measures.probability import binary_entropy

_STRONGER = "take a stronger judge, show it examples (`few_shot`), or let it think first (`chain_of_thought`)"


def measures(*, swap: bool) -> list[Measure]:
    """Return the measures of a judge, those that need both orders only with `swap`."""
    found = [
        Measure(
            "entropy_bits", "<= 0.9", "entropy of the labels", "the judge is near a coin, and what it prefers is mostly noise",
            _STRONGER, _mean(lambda row: binary_entropy(row["p_chosen"])), _figure("entropy_bits"), "bits of 1",
        ),
        Measure(
            "ties", "<= 0.5", "pairs that are tied", "they teach nothing and cost as much as the others",
            "make the answers differ more (temperature, another model), or take a stronger judge",
            lambda passed: _tied(passed, TIE), _figure("ties"),
        ),
        Measure(
            "equal_answers", "<= 0.3", "pairs of equal answers", "there is nothing to choose between",
            "raise the temperature of the samples, and see that the server respects it",
            lambda passed: None if passed.dropped == UNPARSABLE else float(passed.dropped == TIE_EQUAL),
        ),
        Measure(
            "unparsable", "<= 0.05", "judgements that can't be read", "the judge doesn't know what it is asked for",
            "judge by log-probabilities (`method: logprobs`) or show it examples (`few_shot`)",
            _unparsable, _figure("unparsable"),
        ),
        Measure(
            "longer_chosen", "<= 0.8", "pairs whose longer answer won", "a model trained on them learns to be long",
            "ask the judge for more than detail, or balance the lengths with `where` in `filter`", _mean(_longer),
        ),
    ]  # fmt: skip
    if not swap:
        return found
    flips = Measure(
        "order_flips", "<= 0.4", "judgements that flip with the order of the answers", "the judge goes by position",
        _STRONGER, _flips, _figure("order_flips"),
    )  # fmt: skip
    bias = Measure(
        "position_bias", "<= 0.2", "share that the option shown first gets beside an equal one, either way",
        "the judge goes by position", _STRONGER, None, _figure("position_bias"),
    )  # fmt: skip
    return [*found, flips, bias]


def _figure(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda metrics: None if metrics.get(name) is None else abs(metrics[name])


def _mean(of: Callable[[Row], float | None]) -> RowValue:
    def value(passed: Passed) -> float | None:
        found = [x for row in passed.made if (x := of(row)) is not None]
        return sum(found) / len(found) if found else None

    return value


def _longer(row: Row) -> float | None:
    chosen, rejected = len(row["chosen"]), len(row["rejected"])
    return None if chosen == rejected or row["outcome"] == TIE else float(chosen > rejected)


def _tied(passed: Passed, tie: str) -> float:
    return float(passed.dropped.startswith(tie) or any(row["outcome"] == tie for row in passed.made))


def _unparsable(passed: Passed) -> float:
    return float(passed.dropped == UNPARSABLE or any(row["unparsable_votes"] for row in passed.made))


def _flips(passed: Passed) -> float | None:
    if passed.dropped:
        return 1.0 if passed.dropped in STUCK else None
    return _mean(lambda row: Evidence.of(row).flips())(passed)
