"""The answers of the measured models as graders see them: a grade for each, and the rate at which they meet each grader.

Owns what grades amount to. How a model is asked is in `grading.graders`; what people's labels say of it in `agreement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.operator import LLMs, RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.operators.evaluation.attempts import answered, attempted
from caiflow.operators.grading.graders import grade
from caiflow.operators.grading.params import BoundedGrading, Grader
from caiflow.operators.measures.agreement import corrected
from caiflow.operators.measures.statistics import bounded_mean, wilson

FEWEST_LABELS = 10
"""With fewer labelled prompts a corrected rate says too little to be given."""
Key = tuple[str, str]
"""An answer by what was asked and what was said: the same wherever it comes from."""


def key(prompt: Any, answer: str) -> Key:
    """Return the key of an answer."""
    return repr([(turn["role"], turn["content"]) for turn in prompt]), answer


def labels(rows: Sequence[Row]) -> dict[Key, float]:
    """Return the share of people who said yes of each answer that any labelled; several may have, a row each."""
    said: dict[Key, list[bool]] = {}
    for row in rows:
        if row["label"] is not None:
            said.setdefault(key(row["prompt"], row["response"]), []).append(row["label"])
    return {of: sum(told) / len(told) for of, told in said.items()}


async def ask(how: BoundedGrading, rows: Sequence[Row], llms: LLMs) -> list[Row]:
    """Return for each row, in order, `grade` (None where unreadable), `met` (None likewise) and why there is none, `failed`.

    The answer is in `response`. Equal answers to one prompt are asked about once.
    """

    async def once(row: Row, llm: RowLLM) -> Row:
        value = (await grade(how, row, row["response"], llm)).value
        return {"grade": value, "met": None if value is None else value > how.bound}

    blank = {"grade": None, "met": None}
    return await llms.map("grade", how.model, rows, attempted(once, blank))


async def mark(name: str, how: Grader, rows: Sequence[Row], llms: LLMs) -> list[Row]:
    """Write each answer's grade into `grades` and the grader's name into `checks` where it is met; return what was found."""
    wanted = [row for row in answered(rows) if not how.sets or row["set"] in how.sets]
    found = await ask(how, wanted, llms)
    for row, given in zip(wanted, found, strict=True):
        if given["failed"]:
            continue
        row.setdefault("grades", {})[name] = given["grade"]
        row["checks"] = [*row["checks"], *([name] if given["met"] else [])]
    return [{"uid": row["uid"], **given} for row, given in zip(wanted, found, strict=True)]


def figures(name: str, how: Grader, rows: Sequence[Row], labels: Mapping[Key, float], seed: int) -> dict[str, Any] | None:
    """Return the rate at which the answers of one model and set meet a grader, their mean grade, and what couldn't be read.

    Several samples of a prompt are averaged first, as for checks. Where people labelled enough of these very answers
    `corrected` is the rate that they would find; `labels` has the share of them who say yes. None where nothing was graded.
    """
    tried = [row for row in answered(rows) if name in (row.get("grades") or {})]
    graded = [row for row in tried if row["grades"][name] is not None]
    if not tried:
        return None
    by_prompt: dict[str, list[Row]] = {}
    for row in graded:
        by_prompt.setdefault(row["uid"], []).append(row)
    shares = [_share(name, group) for group in by_prompt.values()]
    found = wilson(min(sum(shares), len(shares)), len(shares)).as_dict()
    means = [sum(row["grades"][name] for row in group) / len(group) for group in by_prompt.values()]
    found["grade"] = bounded_mean(means, how.span, seed=seed).as_dict() if means else None
    found["unparsable"] = (len(tried) - len(graded)) / len(tried)
    right = _corrected(name, list(by_prompt.values()), labels)
    return {**found, "corrected": right} if right else found


def _share(name: str, group: Sequence[Row]) -> float:
    return sum(name in row["checks"] for row in group) / len(group)


def _corrected(name: str, groups: Sequence[Sequence[Row]], labels: Mapping[Key, float]) -> dict[str, Any] | None:
    """Return the rate by people's labels; a prompt counts as labelled where all its samples are."""
    said, graded, others = [], [], []
    for group in groups:
        known = [labels.get(key(row["prompt"], row["response"])) for row in group]
        told = [label for label in known if label is not None]
        if len(told) < len(known):
            others.append(_share(name, group))
            continue
        said.append(sum(told) / len(told))
        graded.append(_share(name, group))
    return corrected(said, graded, others).as_dict() if len(said) >= FEWEST_LABELS else None
