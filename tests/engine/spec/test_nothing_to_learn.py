"""What can't be learnt is known from the columns: an error at the spec's line, for every trainer, before anything is paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.spec.load import check_spec

HEAD = "caiflow: 1\nname: learn\nmodels: {base: {source: tiny}}\nsteps:\n"
ASKED = {"role": "user", "content": "Why?"}
SAID = {"role": "assistant", "content": "So."}
FILES: dict[str, list[dict[str, Any]]] = {
    "prompts": [{"prompt": "Why?"}],
    "answered": [{"prompt": "Why?", "response": "So."}],
    "null": [{"prompt": "Why?", "response": None}],
    "some": [{"prompt": "Why?", "response": "So."}, {"prompt": "How?", "response": None}],
    "unanswered": [{"messages": [ASKED]}],
    "conversations": [{"messages": [ASKED, SAID]}],
    "pairs": [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}],
    "half": [{"prompt": "Why?", "chosen": "So.", "rejected": None}],
    "kto": [{"prompt": "Why?", "completion": "So.", "label": True}, {"prompt": "How?", "completion": "No.", "label": False}],
    "paired": [
        {"prompt": "Why?", "completion": text, "label": mark} for text, mark in (("So.", True), ("No.", False), ("I.", True))
    ],
    "bad": [{"prompt": "Why?", "completion": "So.", "label": False}],
}


def told(folder: Path, *steps: str) -> list[tuple[str, str]]:
    """Return each finding as the step it is of and its message."""
    for name, rows in FILES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loads = [f'  "{name}": {{op: load, source: {name}.jsonl}}' for name in FILES]
    (folder / "spec.yaml").write_text(HEAD + "\n".join([*loads, *(f"  {step}" for step in steps)]) + "\n")
    lines = (folder / "spec.yaml").read_text().splitlines()
    return [(lines[found.line - 1].split(":")[0].strip(), found.message) for found in check_spec(folder / "spec.yaml")]


@pytest.mark.parametrize("rows", ["prompts", "null", "some", "unanswered"])
def test_sft_without_replies(tmp_path: Path, rows: str) -> None:
    found = told(tmp_path, f'sl: {{op: sft, input: "{rows}", model: base}}')
    assert [step for step, _ in found] == ["sl"]
    assert f"`{rows}`" in found[0][1]


def test_answers_that_were_criticised_and_not_revised_are_learnt_only_where_that_is_said(tmp_path: Path) -> None:
    critique = "told: {op: critique, input: answered, model: base, constitution: harmless}"
    revise = "better: {op: revise, input: told, model: base, constitution: harmless}"
    found = told(tmp_path, critique, "sl: {op: sft, input: told, model: base}")
    assert found == [("sl", "the answers of `told` would be learnt as they were before their critiques")]
    assert told(tmp_path, critique, "sl: {op: sft, input: told, model: base, column: response}") == []
    assert told(tmp_path, critique, revise, "sl: {op: sft, input: better, model: base}") == []


@pytest.mark.parametrize("trainer", ["dpo", "reward"])
@pytest.mark.parametrize("rows", ["prompts", "null", "half", "answered"])
def test_preferences_without_replies(tmp_path: Path, trainer: str, rows: str) -> None:
    found = told(tmp_path, f'tuned: {{op: {trainer}, input: "{rows}", model: base}}')
    assert {step for step, _ in found} == {"tuned"}
    assert all(f"`{rows}`" in message for _, message in found)


def test_marked_replies_are_learnt_by_their_marks(tmp_path: Path) -> None:
    assert told(tmp_path, "sl: {op: sft, input: kto, model: base}", "tuned: {op: dpo, input: paired, model: base}") == []
    found = told(tmp_path, "tuned: {op: dpo, input: kto, model: base}")
    assert [step for step, _ in found] == ["tuned"]
    assert "`kto` has no column `chosen`" in found[0][1]
    (found,) = told(tmp_path, "sl: {op: sft, input: bad, model: base}")
    assert found == ("sl", "no row of `bad` has anything in `response`, so that there is nothing to learn")


@pytest.mark.parametrize("rows", ["null", "unanswered"])
def test_a_mixture_names_the_input_without_answers(tmp_path: Path, rows: str) -> None:
    found = told(tmp_path, f'both: {{op: mix, inputs: {{"{rows}": 1, answered: 1}}}}')
    assert found == [("both", f"no row of `{rows}` has anything in `response`")]


def test_a_mixture_of_prompts_and_answers_is_no_input_of_a_training(tmp_path: Path) -> None:
    mixture = "both: {op: mix, inputs: {prompts: 1, answered: 1}}"
    assert told(tmp_path, mixture) == []
    found = told(tmp_path, mixture, "sl: {op: sft, input: both, model: base}")
    assert found == [("sl", "not every row of `both` has anything in `response`, so that there is nothing to learn")]


def test_held_out_rows_are_looked_at_too(tmp_path: Path) -> None:
    found = told(tmp_path, "sl: {op: sft, input: answered, eval_input: some, model: base}")
    assert found == [("sl", "not every row of `some` has anything in `response`, so that there is nothing to learn")]


def test_what_can_be_learnt_passes(tmp_path: Path) -> None:
    fine = [
        "answers: {op: generate, input: prompts, model: base}",
        "again: {op: generate, input: null, model: base}",
        "kept: {op: filter, input: kto, drop: [{where: not label}]}",
        "lower: {op: mix, inputs: {some: 1, conversations: 1}}",
        *(f"sl{n}: {{op: sft, input: {name}, model: base}}" for n, name in enumerate(("answers", "again", "kept", "lower"))),
        "sl: {op: sft, input: conversations, model: base}",
        "tuned: {op: dpo, input: pairs, model: base}",
    ]
    assert told(tmp_path, *(step.replace("input: null", 'input: "null"') for step in fine)) == []
