"""What was released with the paper, through the same door: comparisons by people, answers with its preference model's scores.

The page on figures says what the standard checks come to on those answers; every number of it is counted here again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from caiflow.engine.operator import Job, StepContext
from caiflow.operators.evaluate import Evaluate
from caiflow.operators.evaluation.checks import STANDARD, compiled
from caiflow.operators.evaluation.params import EvaluateParams
from caiflow.operators.load import Load, LoadParams
from support.real_data import REAL_DATA, needs
from support.row_llm import Asked, RuleLLM, RuleLLMs
from support.source_tree import ROOT
from support.tables import run_table

HHH, SCORED = REAL_DATA / "hhh_40.jsonl", REAL_DATA / "released_samples_half.jsonl"
ARMS = {
    "HRLHF": "helpful RLHF",
    "HHRLHF": "helpful and harmless RLHF",
    "RLMADISON": "RL-CAI",
    "RLMADISON_COT": "RL-CAI with thoughts",
}
"""The models of the paper, by the names that the released file has for them."""
LINES: dict[Path, dict[str, Any]] = {
    HHH: {"format": "hh", "rename": {"text_correct": "chosen", "text_incorrect": "rejected"}},
    SCORED: {"rename": {"rl_prompt": "prompt"}},
}
"""What a spec says beside `op: load` and the file's name."""


class Answer(NamedTuple):
    """A released answer with the score that the paper's preference model gave it."""

    arm: str
    prompt: str
    text: str
    score: float


def answers() -> list[Answer]:
    return [
        Answer(row["arm"], row["rl_prompt"], one["sampled_string"], one["pm_scores"][0]["pm_score"])
        for row in map(json.loads, SCORED.read_text(encoding="utf-8").splitlines())
        for one in row["sampled_answers"]
    ]


def met(check: str, answer: Answer) -> bool:
    return bool(compiled(STANDARD)[check]({"response": answer.text.removesuffix("\n\nHuman:").strip()}))


@needs(SCORED)
def test_the_page_says_how_checks_stand_to_the_papers_own_scores() -> None:
    page = (ROOT / "docs" / "ideas" / "figures.md").read_text(encoding="utf-8")
    given = [(one, met("refusal_phrase", one), met("boilerplate", one)) for one in answers()]
    for arm, name in ARMS.items():
        own = [one for one in given if one[0].arm == arm]
        mean, refusals, phrases = (sum(values) / len(own) for values in zip(*((a.score, r, b) for a, r, b in own), strict=True))
        assert f"| {name} | {len(own)} | {mean:.2f} | {100 * refusals:.0f} | {100 * phrases:.0f} |" in page
    for place, check in ((1, "refusal_phrase"), (2, "boilerplate")):
        pairs = [
            (one[0].score > other[0].score) == one[place]
            for one, other in combinations(given, 2)
            if one[0].prompt == other[0].prompt and one[place] != other[place]
        ]
        assert f"`{check}`: {100 * sum(pairs) / len(pairs):.0f}% of {len(pairs)}" in page


def pairs_in(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the better and the worse text of each line, read without caiflow."""
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        if file == HHH:
            yield row["text_correct"].rsplit("\n\nAssistant:", 1)[1], row["text_incorrect"].rsplit("\n\nAssistant:", 1)[1]
        else:
            ranked = sorted(row["sampled_answers"], key=lambda one: one["pm_scores"][0]["pm_score"])
            yield ranked[-1]["sampled_string"], ranked[0]["sampled_string"]


def longer(asked: Asked) -> dict[str, float]:
    """A judge who likes the longer answer."""
    a, b = asked.last.split("Options:\n(A) ")[1].rsplit("\n(B) ", 1)
    return {"A": float(len(a) > len(b)), "B": float(len(b) > len(a))}


@needs(HHH, SCORED)
@pytest.mark.parametrize(("file", "count"), [(HHH, 40), (SCORED, 80)], ids=["hhh", "scored"])
def test_a_judge_is_held_against_what_was_released(tmp_path: Path, file: Path, count: int) -> None:
    load = Load(LoadParams.model_validate({"source": str(file), **LINES[file]}), StepContext(base_dir=tmp_path))
    rows, _ = run_table(load, tmp_path / "rows")
    how = {"input": "pairs", "judge": "judge", "instruction": "Which is better?"}
    operator = Evaluate(EvaluateParams.model_validate({"models": ["m"], "judge_agreement": {"us": how}}), StepContext(seed=3))
    (tmp_path / "out").mkdir()
    llms = RuleLLMs({"judge": RuleLLM(choose_by=longer)})
    us = asyncio.run(operator.measure(Job(tmp_path / "out", {"pairs": rows}), llms))["agreement"]["us"]
    right = [0.5 if len(a.strip()) == len(b.strip()) else len(a.strip()) > len(b.strip()) for a, b in pairs_in(file)]
    assert us["accuracy"]["n"] == count == len(right)
    assert us["accuracy"]["rate"] == pytest.approx(sum(right) / count)
    assert us["effects"]["length"]["low"] > 0
