"""How far models keep to each principle: rates on the scenarios written for it, and what changed from the first model on.

Owns the figures; how a judge is asked is in `grading.graders`, who writes scenarios is `probe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.engine.operator import LLMs
from caiflow.engine.rows.columns import Row
from caiflow.operators.evaluation import graded
from caiflow.operators.evaluation.attempts import answered
from caiflow.operators.evaluation.params import WHOLE, AdherenceParams
from caiflow.operators.measures.statistics import paired_change, wilson


def refuse_unknown(rows: Sequence[Row], principles: Mapping[str, str]) -> None:
    """Refuse scenarios of a principle that isn't in the constitution.

    Raises:
        WrongValue: there is one.
    """
    for row in rows:
        if row["principle"] not in principles:
            told = f"adherence: the constitution has no principle {row['principle']!r}, of row {row['uid']}"
            raise WrongValue(told, f"it has {', '.join(principles)}")


async def mark(how: AdherenceParams, rows: Sequence[Row], principles: Mapping[str, str], llms: LLMs) -> list[Row]:
    """Write into `grades` of each answer whether it keeps to its principle (None where unreadable); return what was found."""
    wanted = answered(rows)
    found = await graded.ask(how, [{**row, "principle": principles[row["principle"]]} for row in wanted], llms)
    for row, given in zip(wanted, found, strict=True):
        if not given["failed"]:
            row.setdefault("grades", {})["adheres"] = given["met"]
    return [{"uid": row["uid"], **given} for row, given in zip(wanted, found, strict=True)]


def figures(by_model: Mapping[str, Sequence[Row]], principles: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return by model and principle the rate at which answers keep to it, and `change` from the first model, with intervals.

    Several samples of a scenario are averaged first. `change` pairs answers to the same scenario.
    """
    shares = {model: _shares(rows) for model, rows in by_model.items()}
    first = next(iter(shares.values()), {})
    found: dict[str, dict[str, Any]] = {}
    for place, (model, own) in enumerate(shares.items()):
        found[model] = {}
        for name in (*principles, WHOLE):
            kept = {key: share for key, share in own.items() if name in (key[0], WHOLE)}
            rate = wilson(min(sum(kept.values()), len(kept)), len(kept)).as_dict()
            moved = [share - first[key] for key, share in kept.items() if key in first]
            change = {"change": paired_change(moved)} if place and moved else {}
            found[model][name] = {**rate, **change}
    return found


def _shares(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return the share of a scenario's answers that keep to its principle, by principle and uid."""
    met: dict[tuple[str, str], list[bool]] = {}
    for row in answered(rows):
        if (row.get("grades") or {}).get("adheres") is not None:
            met.setdefault((row["principle"], row["uid"]), []).append(row["grades"]["adheres"])
    return {key: sum(values) / len(values) for key, values in met.items()}
