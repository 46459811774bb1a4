"""What the recipes' filters let through to training: no copy of a critique and no circle, told by other means than theirs."""

from __future__ import annotations

import random
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.rows.columns import Row
from caiflow.engine.spec.load import load_spec
from support.pages import ROOT
from support.tables import ask, rows_of, run_table

SUBJECTS = ("The reply", "This answer", "What was said", "Its second sentence", "The advice")
VERBS = ("helps", "tells", "urges", "warns", "spares", "misleads", "frightens", "shames")
OBJECTS = ("a stranger", "the neighbour", "an angry friend", "the children", "one's own family", "people in need", "the police")
ENDS = ("without need", "in plain words", "for no good reason", "as if it were nothing", "at once", "although nobody asked")


def said(draw: random.Random, sentences: int) -> str:
    groups = (SUBJECTS, VERBS, OBJECTS, ENDS)
    return ". ".join(" ".join(draw.choice(group) for group in groups) for _ in range(sentences)) + "."


def planted(draw: random.Random, number: int) -> Row:
    """Return a row whose revision is, in turn, good, a copy of its critique, or a circle."""
    critique = said(draw, 4)
    revision = (f"I won't do that, number {number}. Ask {draw.choice(OBJECTS)} {draw.choice(ENDS)}; {number + 7} may know.",
                f"Well: {critique}", " ".join([said(draw, 1)] * 6))[number % 3]  # fmt: skip
    return {
        "uid": f"r{number}", "prompt": ask(f"question {number}"), "response": f"First answer number {number}, of some length.",
        "critique": critique, "revision": revision, "few_shot": [],
    }  # fmt: skip


def bad(row: Row) -> bool:
    words = row["revision"].lower().split()
    runs = Counter(zip(*(words[i:] for i in range(4)), strict=False))
    repeated = sum(count - 1 for count in runs.values()) / max(1, runs.total())
    return repeated > 1 / 3 or SequenceMatcher(None, row["revision"], row["critique"], autojunk=False).ratio() > 0.6


def filters() -> list[tuple[str, str, Any]]:
    """Return each recipe's steps that filter revisions which a model of the run has written."""
    found = []
    for path in sorted((ROOT / "specs").glob("*.yaml")):
        spec = load_spec(path)
        for name, step in spec.steps.items():
            if step.op == "filter" and spec.steps[step.input or ""].op == "revise":
                found.append((path.stem, name, spec.operators[name]))
    return found


@pytest.mark.parametrize(("recipe", "step", "operator"), filters(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_copy_and_no_circle_gets_through(recipe: str, step: str, operator: Any, tmp_path: Path) -> None:
    draw = random.Random(f"{recipe} {step}")
    rows = [planted(draw, number) for number in range(90)]
    assert sum(map(bad, rows)) == 60
    out, _ = run_table(operator, tmp_path / "out", {operator.params.input: rows_of(tmp_path / "in", rows)})
    kept = out.pylist()
    assert not any(map(bad, kept))
    assert len(kept) == 30  # the good ones


def test_every_recipe_that_trains_on_its_models_revisions_filters_them() -> None:
    for path in sorted((ROOT / "specs").glob("*.yaml")):
        steps = load_spec(path).steps
        for step in steps.values():
            if step.op in ("mix", "sft", "dpo", "reward"):
                read = [steps[ref.name].op for ref in step.references() if ref.kind == "rows"]
                assert "revise" not in read, f"{path.name}: {step.name} reads revisions that nothing has filtered"
