"""A column that is missing under its name: the line that gives it this name is part of the message."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from caiflow.engine.errors import SpecError
from caiflow.engine.spec.load import load_spec

SPEC = """
caiflow: 1
name: asking
constitution: harmless
models:
  base: {source: tiny}
steps:
  rows: {op: load, source: rows.csv RENAME}
  answer: {op: generate, input: rows, model: base}
"""


@pytest.mark.parametrize("column", ["goal", "question", "Behavior", "instruction"])
def test_the_line_to_write_is_in_the_message_and_mends_it(tmp_path: Path, column: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{column},target\nSay where the tea is.,Sure\n")
    mends(tmp_path, SPEC, column)


def test_a_parquet_file_is_looked_into_as_well(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"user_prompt": ["Say where the tea is."], "kind": ["a"]}), tmp_path / "rows.parquet")
    mends(tmp_path, SPEC.replace("rows.csv", "rows.parquet"), "user_prompt")


def mends(folder: Path, text: str, column: str) -> None:
    spec = folder / "spec.yaml"
    spec.write_text(text.replace(" RENAME", ""))
    with pytest.raises(SpecError) as raised:
        load_spec(spec)
    line = f"rename: {{{column}: prompt}}"
    (problem,) = raised.value.problems
    assert problem.hint.endswith(f"add to that step `{line}`")
    spec.write_text(text.replace(" RENAME", f", {line}"))
    assert load_spec(spec).name == "asking"


def test_no_line_is_made_up_where_no_column_is_like_it(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("colour\nred\n")
    (tmp_path / "spec.yaml").write_text(SPEC.replace(" RENAME", ""))
    with pytest.raises(SpecError) as raised:
        load_spec(tmp_path / "spec.yaml")
    assert "rename" not in raised.value.problems[0].hint


def test_steps_that_lack_what_compares_answers_are_told_how_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt\nSay where the tea is.\n")
    behind = "  judged: {op: judge, input: answer, model: base}\n  better: {op: revise, input: answer, model: base}\n"
    text = SPEC.replace(" RENAME", "") + behind + "  tuned: {op: dpo, input: better, model: base}\n"
    with pytest.raises(SpecError) as raised:
        load_spec(tmp_path / "spec.yaml", text=text)
    judged, *tuned = raised.value.problems
    assert "add to that step `samples: 2`" in judged.hint
    assert len(tuned) == 2
    assert all("by `rename: {revision: chosen, response: rejected}`" in problem.hint for problem in tuned)
    several = text.replace("op: generate", "op: generate, samples: 2")
    pairs = "  pairs: {op: map, input: better, rename: {revision: chosen, response: rejected}}\n"
    load_spec(tmp_path / "spec.yaml", text=several.replace("dpo, input: better", "dpo, input: pairs") + pairs)
