"""Health measures of an evaluation: checks that no answer meets, and intervals that can't tell the models apart.

Owns their bounds and sentences; reads the figures of metrics.json alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, Literal

from caiflow.engine.health import Measure


def measures(own_checks: Iterable[str], graders: Iterable[str] = (), agreements: Iterable[str] = ()) -> list[Measure]:
    """Return the measures, some for each of the spec's own checks, graders and agreements with people.

    The standard checks have none of their own: they may well be met by nobody.
    """
    agreed = [
        measure for name in agreements for measure in (_agreed(name, "kappa", ">= 0.4"), _agreed(name, "accuracy", ">= 0"))
    ]
    return [*map(_never_met, own_checks), *map(_unreadable, graders), *agreed, _APART, _UNRATED, _ENGLISH]


def _agreed(name: str, figure: Literal["kappa", "accuracy"], healthy: str) -> Measure:
    def value(metrics: Mapping[str, Any]) -> float | None:
        found = ((metrics.get("agreement") or {}).get(name) or {}).get(figure) or {}
        known: float | None = found.get("rate" if figure == "accuracy" else "value")
        return known

    return Measure(
        f"{figure}_{name}", healthy, f"{figure} of `{name}` with people's labels", "its verdicts are little better than chance",
        "take another grader or judge, or correct its rates by labels", figure=value, unit="(1 is full agreement)",
    )  # fmt: skip


def _unreadable(grader: str) -> Measure:
    def highest(metrics: Mapping[str, Any]) -> float | None:
        shares = [rates[grader]["unparsable"] for rates in _groups(metrics) if grader in rates]
        held = (metrics.get("agreement") or {}).values()
        return max([*shares, *(found["unparsable"] for found in held if found.get("grader") == grader)], default=None)

    return Measure(
        f"unparsable_{grader}", "<= 0.05", f"answers of any model to any set whose grade by `{grader}` can't be read",
        "its rate leaves them out", "say in `question` how to reply, or take `method: logprobs`", figure=highest,
    )  # fmt: skip


def _never_met(check: str) -> Measure:
    def highest(metrics: Mapping[str, Any]) -> float | None:
        return max((rates[check]["rate"] for rates in _groups(metrics) if rates.get(check, {}).get("n")), default=None)

    return Measure(
        f"met_{check}", "> 0", f"answers of any model to any set that meet `{check}`",
        "it tells nothing, or its pattern is wrong", "try the pattern on answers that should meet it", figure=highest,
    )  # fmt: skip


def _undecided(metrics: Mapping[str, Any]) -> float | None:
    """Return the share of rates, by set and check, that tell no two models apart; equal rates don't count.

    Those whose intervals are apart are, and arms whose answers to the same prompts differ.
    """
    places: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for sets in (metrics.get("models") or {}).values():
        for name, rates in sets.items():
            for check, rate in rates.items():
                places.setdefault((name, check), []).append(rate)
    arms = list((metrics.get("arms") or {}).values())
    paired = {
        (s, c) for sets in arms for s, found in sets.items() for c, one in found.items() if one["low"] > 0 or one["high"] < 0
    }
    differ = {place: rates for place, rates in places.items() if len({rate["rate"] for rate in rates}) > 1}
    return sum(place not in paired and not _apart(rates) for place, rates in differ.items()) / len(differ) if differ else None


def _apart(rates: Iterable[Mapping[str, Any]]) -> bool:
    return any(a["low"] > b["high"] or b["low"] > a["high"] for a, b in combinations(rates, 2))


def _groups(metrics: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for sets in (metrics.get("models") or {}).values():
        yield from sets.values()


def _unrated(metrics: Mapping[str, Any]) -> float | None:
    found = (metrics.get("comparisons") or {}).values()
    return sum(len(figures.get("unrated", ())) for figures in found) if found else None


_UNRATED = Measure(
    "unrated", "<= 0", "models without a rating, since no chain of comparisons joins them to the anchor",
    "they can't be placed among the others", "compare them with the anchor, or with a model that met it", figure=_unrated,
)  # fmt: skip
_ENGLISH = Measure(
    "not_english", "<= 0.5", "answers in another language than English", "the standard checks know English phrases alone",
    "write `checks` for that language, or let a model grade the answers (`graders`)",
    figure=lambda metrics: metrics.get("not_english"),
)  # fmt: skip
_APART = Measure(
    "undecided", "< 1", "rates at which no two models' intervals are apart", "the figures say nothing about which is better",
    "measure on more prompts", figure=_undecided,
)  # fmt: skip
