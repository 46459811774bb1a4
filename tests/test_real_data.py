"""Real data, where it lies beside the repository: no row is lost or invented, and the released questions are scored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.operator import StepContext
from caiflow.engine.rows.folder import Rows
from caiflow.operators.load import Load, LoadParams
from support.commands import run_here
from support.real_data import REAL_DATA, needs
from support.tables import run_table

HARMLESS, HHH = REAL_DATA / "hh_harmless_200.jsonl", REAL_DATA / "hhh_40.jsonl"

pytestmark = needs(HARMLESS, HHH)

LOOP = """
caiflow: 1
name: real_rows
constitution: harmless
models:
  base: {source: tiny, engine: transformers}
steps:
  prompts:  {op: load, source: "DATA", format: hh}
  response: {op: generate, input: prompts, model: base, sampling: {max_tokens: 24}}
  critique: {op: critique, input: response, model: base, sampling: {max_tokens: 24}}
  revision: {op: revise, input: critique, model: base, sampling: {max_tokens: 24}}
  clean:    {op: filter, input: revision, drop: [unchanged, {length: {column: revision, min: 4}}]}
"""
QUESTIONS = """
caiflow: 1
name: real_questions
models:
  base: {source: tiny, engine: transformers}
steps:
  scores: {op: evaluate, models: [base], choices: {hhh: {source: "DATA"}}}
"""


def run(address: str, text: str, data: Path, folder: Path, *options: str) -> dict[str, Any]:
    spec = folder / "spec.yaml"
    spec.write_text(text.replace("DATA", str(data)), encoding="utf-8")
    return run_here(address, spec, folder / "run", folder / "home", "--allow-path", str(data.resolve().parent), *options)


@pytest.mark.soak
@pytest.mark.parametrize("rows", [30, 200])
def test_every_real_row_is_kept_or_dropped_once(rows: int, tmp_path: Path, ray_address: str) -> None:
    done = run(ray_address, LOOP, HARMLESS, tmp_path, "--set", f"steps.prompts.limit={rows}")
    steps = tmp_path / "run" / "steps"
    loaded = Rows(steps / "prompts").pylist()
    assert len(loaded) == len({row["uid"] for row in loaded}) == rows
    kept, dropped = Rows(steps / "clean").pylist(), Rows(steps / "clean").dropped().pylist()
    assert Counter(row["uid"] for row in [*kept, *dropped]) == Counter(row["uid"] for row in loaded)
    assert all(row["reason"] for row in dropped)
    prompts = {row["uid"]: row["prompt"] for row in loaded}
    assert all(row["prompt"] == prompts[row["uid"]] for row in kept)
    for name in ("response", "critique", "revision"):
        assert done["steps"][name]["rows_out"] == rows
        assert all(row[name] is not None for row in kept)


def test_a_real_dialogue_keeps_every_word_of_both_sides(tmp_path: Path) -> None:
    step = Load(LoadParams(source=str(HARMLESS), format="hh"), StepContext(base_dir=tmp_path))
    rows = run_table(step, tmp_path / "rows")[0].pylist()
    for line, row in zip(HARMLESS.read_text(encoding="utf-8").split("\n"), rows, strict=False):
        for side in ("chosen", "rejected"):
            said = " ".join([*(turn["content"] for turn in row["prompt"]), row[side]])
            assert words(said) == words(json.loads(line)[side])
    assert len(rows) == 200


def words(transcript: str) -> list[str]:
    return [word for word in transcript.split() if word not in ("Human:", "Assistant:")]


@pytest.mark.soak
def test_the_released_questions_are_scored(tmp_path: Path, ray_address: str) -> None:
    run(ray_address, QUESTIONS, HHH, tmp_path)
    folder = tmp_path / "run" / "steps" / "scores"
    found = json.loads((folder / "metrics.json").read_text())["choices"]["hhh"]["base"]
    assert found["n"] == 40
    assert 0 <= found["low"] <= found["rate"] <= found["high"] <= 1
    answers = Rows(folder / "choices").pylist()
    assert sorted(int(row["uid"]) for row in answers) == list(range(1, 41))
    assert found["rate"] == pytest.approx(sum(row["credit"] for row in answers) / 40)
    assert all(row["failed"] is None and 0 <= row["p_right"] <= 1 for row in answers)
