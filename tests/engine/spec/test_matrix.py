"""What is wrong with a matrix, or with all arms of one, is said once and at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.spec.load import check_spec

SPEC = """\
caiflow: 1
constitution: harmless
models: {base: {source: tiny}}
steps:
  rows: {op: load, source: rows.jsonl}
  answers: {op: generate, input: rows, model: base}
  better: {op: critique, input: answers, model: base}
  tuned: {op: sft, input: better, model: base, column: response}
  figures: {op: evaluate, models: [base, "tuned@*"], inputs: {rows: rows}}
"""


def said(folder: Path, matrix: str, **changed: str) -> list[str]:
    """Return what is wrong with the spec under a matrix, with the text of the line that each finding is at."""
    (folder / "rows.jsonl").write_text('{"prompt": "Why?"}\n')
    text = SPEC
    for before, after in changed.items():
        text = text.replace(before, after)
    text += f"matrix:\n  {matrix}\n"
    (folder / "spec.yaml").write_text(text)
    lines = text.splitlines()
    return [f"{lines[problem.line - 1].strip()} -> {problem.message}" for problem in check_spec(folder / "spec.yaml")]


@pytest.mark.parametrize(
    "matrix",
    [
        "answers.samplng.temperature: [0.1, 0.5, 0.9]",
        "answers.sampling.temprature: [0.1, 0.5, 0.9]",
        "answrs.sampling.temperature: [0.1, 0.5, 0.9]",
        "answers.sampling.temperature.high: [0.1, 0.5, 0.9]",
        "models.base.sorce: [a, b, c]",
        "models.bse.source: [a, b, c]",
        "models.base.options.dtype: [a, b, c]",
        "tuned.learnin_rate: [1.0e-4, 1.0e-5]",
        "tuned.lora.rnk: [1, 2, 3]",
        "tuned.inputt: [better, answers]",
        "lr: {low: {tuned.learning_rate: 1.0e-5}, high: {tuned.learnin_rate: 1.0e-4}}",
        "answers: [1, 2]",
        "temperature: [0.1, 0.5]",
        "seed: [1, 2]",
        "constitution.without: [p01-violence, p02-theft]",
    ],
)
def test_a_path_with_a_typo_is_said_once_and_nothing_that_follows_from_it(tmp_path: Path, matrix: str) -> None:
    found = said(tmp_path, matrix)
    assert len(found) == 1, found
    assert found[0].startswith(matrix.split(":")[0])


@pytest.mark.parametrize("axis", ["tuned.learning_rate: [1.0e-4, 1.0e-5]", "answers.sampling.temperature: [0.1, 0.5, 0.9]"])
@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("column: response", "column: reply", "tuned"),
        ("input: better", "input: bettr", "tuned"),
        ("op: sft", "op: dpo", "tuned"),
        ("inputs: {rows: rows}", "inputs: {rows: raws}", "figures"),
        ("model: base, column", "model: bse, column", "tuned"),
        ("column: response", "column: response, max_length: 100000", "tuned"),
    ],
)
def test_what_is_wrong_with_every_arm_is_said_once(tmp_path: Path, axis: str, before: str, after: str, line: str) -> None:
    found = said(tmp_path, axis, **{before: after})
    assert len(found) == 1, found
    assert found[0].startswith(line)


@pytest.mark.parametrize("steps", ["", "steps:\n", "steps: none\n", "steps: []\n"])
def test_a_matrix_without_steps_is_answered_with_what_is_missing(tmp_path: Path, steps: str) -> None:
    (tmp_path / "spec.yaml").write_text(f"caiflow: 1\nmatrix:\n  judge: {{a: {{constitution: harmless}}}}\n{steps}")
    assert "steps" in " ".join(str(problem) for problem in check_spec(tmp_path / "spec.yaml"))
