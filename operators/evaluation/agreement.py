"""Graders and judges held against people: how often they agree, beyond chance, and at every bound at once.

Owns which rows are held against which labels, and what of them is kept. The formulas are in `measures.agreement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.errors import WrongValue
from caiflow.engine.identity import key
from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row, answer_column
from caiflow.operators.evaluation import graded
from caiflow.operators.evaluation.attempts import answered, attempted
from caiflow.operators.evaluation.params import JudgeAgreementParams
from caiflow.operators.grading.graders import truth
from caiflow.operators.grading.params import AgreementParams, Grader
from caiflow.operators.judging.pairwise import PairJudge, judged_votes
from caiflow.operators.judging.prompts import turns
from caiflow.operators.measures.agreement import auc, corrected, false_positives, kappa
from caiflow.operators.measures.effects import effects
from caiflow.operators.measures.statistics import calibration, wilson

COLUMNS: Mapping[str, Any] = {
    "uid": "text",
    "agreement": "text",
    "response": "text",
    "label": "flag",
    "grade": "number",
    "met": "flag",
    "p_chosen": "number",
    "p_second": "number",
    "failed": "text",
}
"""The columns of the rows kept beside the figures; `p_chosen` is a judge's probability of what people chose, `p_second` that of
a second one."""


async def grade(name: str, how: AgreementParams, grader: Grader, rows: Sequence[Row], llms: LLMs) -> list[Row]:
    """Return the rows with people's `label` (None without one), and the grader's `grade` and `met`.

    Raises:
        ValueError: a label that can't be read, or texts under `met` that no label is.
    """
    column = how.answer or answer_column(rows[0] if rows else {}) or "response"
    values = [row[how.labels] for row in rows]
    if unknown := [text for text in how.met if text not in values]:
        known = ", ".join(sorted({str(value) for value in values if value is not None})[:9])
        raise WrongValue(f"agreement.{name}: there is no label {unknown[0]!r}", f"labels are {known}")
    asked = [
        {**row, "prompt": turns(row["prompt"]), "response": row[column] or "", "label": truth(value, how.met)}
        for row, value in zip(rows, values, strict=True)
    ]
    found = await graded.ask(grader, asked, llms)
    return [{**row, **given, "agreement": name} for row, given in zip(asked, found, strict=True)]


def figures(rows: Sequence[Row], span: tuple[float, float], seed: int, recall: float) -> dict[str, Any]:
    """Return how a grader agrees with the labels, and its rate on all rows beside the one that people's labels make of it.

    `span` has the least and the greatest grade: between them grades are read as probabilities for the calibration. `recall` is
    the share of labelled rows that a bound has to find, at which false positives are told.
    """
    tried = answered(rows)
    read = [row for row in tried if row["met"] is not None]
    held = [row for row in read if row["label"] is not None]
    met, labels = [row["met"] for row in held], [row["label"] for row in held]
    low, high = span
    grades = [row["grade"] for row in held]
    shares = [min(1.0, max(0.0, (grade - low) / (high - low))) for grade in grades]
    raw = wilson(sum(row["met"] for row in read), len(read))
    found: dict[str, Any] = {
        "accuracy": wilson(sum(a == b for a, b in zip(met, labels, strict=True)), len(held)).as_dict(),
        "kappa": kappa(met, labels, seed=seed).as_dict(),
        "auc": auc(grades, labels).as_dict(),
        "false_positives": false_positives(grades, labels, recall=recall).as_dict(),
        "calibration_error": calibration(shares, [float(label) for label in labels]).error if held else None,
        "met_of_labelled": wilson(_both(met, labels), sum(labels)).as_dict(),
        "met_of_others": wilson(sum(met) - _both(met, labels), len(labels) - sum(labels)).as_dict(),
        "unparsable": (len(tried) - len(read)) / len(tried) if tried else 0.0,
        "raw": raw.as_dict(),
    }
    if len(held) >= graded.FEWEST_LABELS:
        others = [float(row["met"]) for row in read if row["label"] is None]
        found["corrected"] = corrected([float(x) for x in labels], [float(x) for x in met], others).as_dict()
    return found


def _both(met: Sequence[bool], labels: Sequence[bool]) -> int:
    return sum(a and b for a, b in zip(met, labels, strict=True))


async def judge(name: str, how: JudgeAgreementParams, rows: Sequence[Row], llms: LLMs, pair_judge: PairJudge) -> list[Row]:
    """Return the pairs with the judge's probability of what people chose, and its votes as they were shown.

    A second judge's probability is `p_second`: None without one, or where it gave none.
    """

    async def ask(row: Row, llm: RowLLM) -> Row:
        verdict = await pair_judge.verdict(row["uid"], row["prompt"], _pair(row), llm)
        of_chosen = verdict.p_first if _chosen_first(row) else 1 - verdict.p_first
        moved = judged_votes(row["uid"], _pair(row), verdict, {"people": 1.0 if _chosen_first(row) else -1.0})
        votes = {"p_a": [vote.p_a for vote in verdict.votes], "unparsable_votes": verdict.unparsable, "moved": moved}
        return {"p_chosen": of_chosen, **votes}

    blank: Row = {"p_chosen": None, "p_a": [], "unparsable_votes": 0, "moved": []}
    found = await llms.map("agreement", how.judge, rows, attempted(ask, blank))
    others = await llms.map("agreement again", how.second, rows, attempted(ask, blank)) if how.second else [blank] * len(rows)
    return [
        {"uid": row["uid"], "agreement": name, "response": row["chosen"], "p_second": other["p_chosen"], **given}
        for row, given, other in zip(rows, found, others, strict=True)
    ]


def judge_figures(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Return how often a judge prefers what people chose, a tie counting half, beyond chance, and how sure it may be.

    Which of the two is shown first says nothing about people's choice, so chance agrees on half, and kappa is twice the
    accuracy less one.
    """
    rows = answered(rows)
    shares = [row["p_chosen"] for row in rows]
    right = sum(0.5 if abs(p - 0.5) < 1e-9 else float(p > 0.5) for p in shares)
    votes = [p for row in rows for p in row["p_a"]]
    accuracy = wilson(right, len(rows))
    kappa_of = {"value": None if accuracy.rate is None else 2 * accuracy.rate - 1, "n": len(rows)}
    both_ways = [*shares, *(1 - p for p in shares)], [*[1.0] * len(rows), *[0.0] * len(rows)]
    return {
        "accuracy": accuracy.as_dict(),
        "kappa": {**kappa_of, "low": 2 * accuracy.low - 1, "high": 2 * accuracy.high - 1},
        "calibration_error": calibration(*both_ways).error if rows else None,
        "ties": sum(abs(p - 0.5) < 1e-9 for p in shares) / len(rows) if rows else None,
        "unparsable": sum(bool(row["unparsable_votes"]) for row in rows) / len(rows) if rows else None,
        "position_bias": sum(votes) / len(votes) - 0.5 if votes else 0.0,
        "effects": effects([vote for row in rows for vote in row["moved"]], seed=seed),
        **_of_two(rows, seed),
    }


def _of_two(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Return how often two judges, or one asked twice, prefer the same answer; pairs that either leaves undecided are left out.

    Kappa takes which of the two is shown first, which is drawn, for the verdict, so that chance is not their shared taste.
    """
    both = [row for row in rows if row["p_second"] is not None]
    decided = [row for row in both if abs(row["p_chosen"] - 0.5) > 1e-9 and abs(row["p_second"] - 0.5) > 1e-9]
    if not both:
        return {}
    first, second = ([(row[name] > 0.5) == _chosen_first(row) for row in decided] for name in ("p_chosen", "p_second"))
    same = sum(a == b for a, b in zip(first, second, strict=True))
    undecided = (len(both) - len(decided)) / len(both)
    agreed = {"accuracy": wilson(same, len(decided)).as_dict(), "kappa": kappa(first, second, seed=seed).as_dict()}
    return {"second": {**agreed, "undecided": undecided}}


def _chosen_first(row: Row) -> bool:
    """Return whether people's choice is the pair's first: drawn by the row, so that the place tells nothing."""
    return key("agreement", str(row["uid"]))[0] % 2 == 0


def _pair(row: Row) -> tuple[str, str]:
    return (row["chosen"], row["rejected"]) if _chosen_first(row) else (row["rejected"], row["chosen"])
