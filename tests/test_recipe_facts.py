"""The tables that set each recipe beside its source (docs/recipe-sources.md), held against the full profiles and the sources.

What a table says of a recipe is what the recipe does; where the source says another thing there is a reason; and a number of
the source is in the notes on the sources, where those lie beside the real data.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from caiflow.engine.spec.grammar import Spec
from caiflow.engine.spec.load import load_spec
from support.real_data import REAL_DATA, needs
from support.source_tree import ROOT

PAGE = ROOT / "docs" / "recipe-sources.md"
NOTES = REAL_DATA.parent / "cai-facts.md"
"""Notes on the paper and the other sources, with the sources' own texts in a folder beside them."""
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-\d+)?")
UNSAID = "—"


class Line(NamedTuple):
    """A line of a recipe's table."""

    recipe: str
    setting: str
    source: str
    here: str
    why: str

    @property
    def place(self) -> tuple[str, str] | None:
        """The profile and the setting that the line speaks of; None where it speaks of something that no single field says."""
        found = re.fullmatch(r"`(?:(\w+): )?([^`]+)`", self.setting)
        return (found[1] or "", found[2]) if found else None


def lines() -> list[Line]:
    found, recipe = [], ""
    for text in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## `(\w+)`", text):
            recipe = heading[1]
        elif text.startswith("| ") and not text.startswith(("| setting ", "| --- ")):
            found.append(Line(recipe, *(cell.strip() for cell in text.strip("|").split("|"))))
    return found


LINES = lines()
SETTINGS = [line for line in LINES if line.place]


def said(cell: str) -> Any:
    """Return the value that a cell holds as code; the cell itself where it is words, or a link."""
    code = re.fullmatch(r"`([^`]+)`|\[([^]]+)\]\([^)]+\)", cell)
    return _read(code[1] or code[2]) if code else cell


def _read(code: str) -> Any:
    import yaml

    return yaml.safe_load(re.sub(r"\b(\d+)e-(\d+)\b", r"\1.0e-\2", code))


@cache
def profiled(recipe: str, profile: str = "") -> Spec:
    """Return a recipe under a profile; by default under `full`, or as it is where it has no such one."""
    path = Path(ROOT) / "specs" / f"{recipe}.yaml"
    full = "full" if "\n  full:" in path.read_text(encoding="utf-8") else None
    return load_spec(path, profile=profile or full)


def value(spec: Spec, place: str) -> Any:
    """Return what a spec says at a dotted place; `batch` behind it is a training step's rows, `rollout` its replies at once."""
    part, _, derived = place.partition(" ")
    name, *path = part.removeprefix("models.").split(".")
    step = None if part.startswith("models.") else spec.steps[name]
    if derived:
        assert step is not None
        each = step.params.per_device_train_batch_size * step.params.resources.workers
        return each * (step.params.gradient_accumulation_steps if derived == "batch" else step.params.steps_per_generation)
    if path == ["op"]:
        return None if step is None else step.op
    found: Any = spec.models[name] if step is None else step.params
    for field in path:
        found = found[field] if isinstance(found, dict) else getattr(found, field)
    return list(found) if isinstance(found, tuple) else found


@pytest.mark.parametrize("line", SETTINGS, ids=lambda line: f"{line.recipe} {line.setting.strip('`')}")
def test_a_recipe_has_what_its_table_says(line: Line) -> None:
    assert line.place is not None
    profile, place = line.place
    assert value(profiled(line.recipe, profile), place) == said(line.here)


def test_each_recipe_of_a_source_has_a_table_that_says_why_where_it_parts_from_it() -> None:
    counts = Counter(line.recipe for line in SETTINGS)
    assert list(counts) == ["paper", "autoalign_style", "nemo_style", "pseudocode", "small_lora", "character"]
    assert min(counts.values()) > 7
    for line in LINES:
        assert bool(line.why) is (said(line.source) != said(line.here)), line


@needs(NOTES)
def test_the_numbers_of_the_sources_are_those_of_the_notes_on_them() -> None:
    known = {
        float(number.replace(",", ""))
        for file in (NOTES, *(NOTES.parent / "sources").glob("*.txt"))
        for number in NUMBER.findall(file.read_text(encoding="utf-8", errors="replace"))
    }
    told = [(line, float(n.replace(",", ""))) for line in LINES if "](" not in line.source for n in NUMBER.findall(line.source)]
    assert [line for line, number in told if number not in known] == []
    assert len(told) > 40


def test_autoalign_mixes_and_draws_as_described() -> None:
    spec = profiled("autoalign_style")
    assert [sample.temperature for sample in value(spec, "pair.samples")] == [0, 1]
    lengths = {
        rule.length.column: (rule.length.min, rule.length.max)
        for rule in value(spec, "clean.drop")
        if getattr(rule, "length", None)
    }
    assert lengths == {"response": (10, 3000), "revision": (10, 2000)}


def test_nemo_draws_four_candidates_and_blends_three_folders() -> None:
    spec = profiled("nemo_style")
    assert [sample.temperature for sample in value(spec, "candidates.samples")] == [0.01, 0.51, 1.01, 1.51]
    blended = [name for name in value(spec, "rm_data.inputs") if name != "preference"]
    assert [value(spec, f"{name}.folder") for name in blended] == [
        "helpful-base", "helpful-online", "helpful-rejection-sampled",
    ]  # fmt: skip
    assert list(value(spec, "rl_prompts.inputs")) == ["red_team", *blended]


def test_the_paper_has_sixteen_principles() -> None:
    constitution = profiled("paper").operators["preference"].constitution
    assert len(constitution.principles) == 16
