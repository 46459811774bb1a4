"""Measuring on rows that a model is trained on is remarked where the sources say so, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caiflow.engine.cli import main
from caiflow.engine.spec.load import load_spec

HEAD = "caiflow: 1\nname: overlap\nmodels: {base: {source: tiny}}\nsteps:\n"
SPLIT = "split: {test: 0.5, part: %s}"
LOADS = [
    "all: {op: load, source: a.jsonl}",
    "some: {op: load, source: ./a.jsonl, sample: 2}",
    f"left: {{op: load, source: a.jsonl, {SPLIT % 'train'}}}",
    f"right: {{op: load, source: a.jsonl, {SPLIT % 'test'}}}",
    f"otherwise: {{op: load, source: a.jsonl, {SPLIT % 'test, seed: 3'}}}",
    "other: {op: load, source: b.jsonl}",
]
ROW = {"prompt": "Why?", "response": "So.", "chosen": "So.", "rejected": "No."}


def spec_of(folder: Path, *steps: str) -> Path:
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({**ROW, "prompt": f"{name}{n}?"}) + "\n" for n in range(6)))
    (folder / "spec.yaml").write_text(HEAD + "".join(f"  {step}\n" for step in (*LOADS, *steps)))
    return folder / "spec.yaml"


def remarks(folder: Path, *steps: str) -> list[str]:
    return [f"{found.path}: {found.message}" for found in load_spec(spec_of(folder, *steps)).remarks]


@pytest.mark.parametrize(
    ("learnt", "measured", "shared"),
    [
        ("all", "all", True), ("all", "some", True), ("left", "all", True), ("left", "otherwise", True),
        ("left", "right", False), ("all", "other", False),
    ],
)  # fmt: skip
def test_sources_tell_whether_rows_are_shared(learnt: str, measured: str, shared: bool, tmp_path: Path) -> None:
    over = [f"sl: {{op: sft, input: {learnt}, model: base}}", "more: {op: dpo, input: other_pairs, model: sl}"]
    over += ["other_pairs: {op: filter, input: other, drop: [duplicates]}"]
    scores = f"scores: {{op: evaluate, models: [base, more], inputs: {{harm: {measured}}}}}"
    expected = ["steps.scores.inputs.harm"] if shared else []
    if measured == "other":
        expected = ["steps.scores.inputs.harm"]  # what `more` learns
    assert [found.split(":")[0] for found in remarks(tmp_path, *over, scores)] == expected


@pytest.mark.parametrize("op", ["sft", "dpo", "reward", "rl"])
@pytest.mark.parametrize(("measured", "shared"), [("some", True), ("other", False), ("mixed", True)])
def test_rows_for_the_loss_are_looked_at_too(op: str, measured: str, shared: bool, tmp_path: Path) -> None:
    more = "rewards: {rm: 1}, " if op == "rl" else ""
    steps = ["rm: {op: reward, input: mixed, model: base}", "mixed: {op: mix, inputs: {all: 1}, held_out: [other]}"]
    found = remarks(tmp_path, *steps, f"tuned: {{op: {op}, {more}input: mixed, eval_input: {measured}, model: base}}")
    assert len(found) == shared
    rows = "`some` (from where `all` is too)" if measured == "some" else "`all`"
    assert all(f"`tuned` measures on rows of {rows}, on which its model may be trained" in one for one in found)


def test_untrained_models_are_measured_on_anything(tmp_path: Path) -> None:
    assert remarks(tmp_path, "scores: {op: evaluate, models: [base], inputs: {harm: all}}") == []


def test_validate_says_it_and_is_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec_of(tmp_path, "sl: {op: sft, input: all, model: base}", "s: {op: evaluate, models: [sl], inputs: {h: all}}")
    assert main(["validate", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(": ok")
    assert said[1].startswith(f"remark: {path}:12:")
    assert "load the two sides by one `split`" in said[1]
