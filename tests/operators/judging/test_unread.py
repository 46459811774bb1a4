"""A judge of whose answers none can be read ends its step with what it said; one that can be read now and then does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import Completion
from caiflow.engine.store.artifacts import Store
from support.runs_without_ray import AskedLink, carry_out

SPEC = """\
caiflow: 1
constitution: rules.txt
models: {m: {source: served, base_url: "http://127.0.0.1:9/v1"}}
steps:
  rows: {op: load, source: rows.jsonl}
  kept: {op: judge, input: rows, model: m, method: text%s}
"""


def written(folder: Path, more: str = "") -> Path:
    rows = [{"prompt": f"Say {word}.", "responses": [word, "no"]} for word in ("red", "blue", "tea")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rules.txt").write_text("Be kind.")
    (folder / "spec.yaml").write_text(SPEC % more)
    return folder / "spec.yaml"


@pytest.mark.parametrize(
    "more", ["", ", unparsable: tie", ", swap: false", ", listwise: true", ", chain_of_thought: {clamp: null}"]
)
def test_a_judge_that_says_nothing_readable_fails_with_what_it_said(tmp_path: Path, more: str) -> None:
    spec, store = written(tmp_path, more), Store(tmp_path / "home")
    link = AskedLink(says=lambda request: Completion("Both are fine."))
    for _ in range(2):  # the ledger says it again
        with pytest.raises(StepError, match=r"^no judgement could be read; it answered, for one, 'Both are fine\.'; take a"):
            carry_out(spec, store, link)


def test_one_judgement_that_can_be_read_is_enough(tmp_path: Path) -> None:
    link = AskedLink(says=lambda request: Completion("(A)" if "red" in str(request.prompt) else "Both are fine."))
    assert carry_out(written(tmp_path, ", swap: false"), Store(tmp_path / "home"), link)[0][0]["chosen"] == "red"


def test_two_pairs_that_cannot_be_read_are_counted_and_do_not_fail_it(tmp_path: Path) -> None:
    link = AskedLink(says=lambda request: Completion("Both are fine."))
    spec = written(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join((tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)[:2]))
    assert carry_out(spec, Store(tmp_path / "home"), link)[0] == []
