"""The line that gives a source's columns their names: as people's files have them, told by names and by contents."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.operator import StepContext
from caiflow.operators.load import Load, LoadParams
from support.loading import load, write
from support.real_data import REAL_DATA, needs

ASKED = ("How do I open a locked door?", "Write a letter to the mayor.", "What is the tallest tree?")
TOLD = (
    "Use the key that fits it, or ring.",
    "Dear mayor, the bench is broken. Please mend it.",
    "A redwood in California, I think.",
)
PLAIN = {"id": ("a1", "a2", "a3"), "url": ("https://a.org/1", "https://a.org/2", "https://a.org/3"), "score": ("1", "0.5", "3")}
SORTS = ("travel and places", "travel and places", "travel and places")

SHAPES: dict[str, tuple[dict[str, tuple[Any, ...]], str, str]] = {
    "AdvBench": ({"goal": ASKED, "target": TOLD}, "rename: {goal: prompt}", "rename: {target: completion}"),
    "HarmBench": (
        {"Behavior": ASKED, "FunctionalCategory": ("standard",) * 3, "SemanticCategory": SORTS, "Tags": ("",) * 3,
         "ContextString": ("",) * 3, "BehaviorID": ("open_locked_door", "letter_mayor", "tall_tree")},
        "rename: {Behavior: prompt}", "",
    ),
    "HarmBench with contexts": (
        {"Behavior": ASKED, "ContextString": ("The door is made of oak.", "", "")},
        'prompt: "{% if ContextString %}{{ ContextString }}\\n\\n{% endif %}{{ Behavior }}"', "",
    ),
    "BBQ": (
        {"example_id": (0, 1, 2), "context": ("I met Ann and Bea.", "Two men ran.", "A boy and a girl sang."),
         "question": ("Who was late?", "Who won?", "Who was off key?"), "ans0": ("Ann", "Jo", "The boy"), "label": (1, 2, 0)},
        'prompt: "{{ context }}\\n\\n{{ question }}"', "",
    ),
    "dolly": (
        {"instruction": ASKED, "context": ("", "", ""), "response": TOLD, "category": SORTS},
        "rename: {instruction: prompt}", "",
    ),
    "do-not-answer": ({"id": (1, 2, 3), "risk_area": SORTS, "question": ASKED}, "rename: {question: prompt}", ""),
    "JailbreakBench": ({"Index": (0, 1, 2), "Goal": ASKED, "Target": TOLD, "Behavior": ("Locks", "Letters", "Trees")},
                       "rename: {Goal: prompt}", "rename: {Target: completion}"),
    "released samples": (
        {"arm": ("a", "b", "c"), "rl_prompt": tuple(f"\n\nHuman: {text}\n\nAssistant:" for text in ASKED),
         "initial_response": TOLD},
        "rename: {rl_prompt: prompt}", "rename: {initial_response: completion}",
    ),
    "own names": ({**PLAIN, "was_gefragt": ASKED, "topic": SORTS, "x": TOLD}, "rename: {was_gefragt: prompt}",
                  "rename: {x: completion}"),
    "one column": ({**PLAIN, "seed_line": TOLD}, "rename: {seed_line: prompt}", ""),
    "no text": ({**PLAIN, "topic": SORTS, "input": ("3", "4", "5")}, "", ""),
    "SHP": (
        {"domain": ("askphysics",) * 3, "history": ASKED, "human_ref_A": TOLD, "human_ref_B": TOLD, "score_A": (3, 4, 5),
         "score_B": (1, 1, 9)},
        "rename: {history: prompt}", "rename: {human_ref_A: completion}",
    ),
    "worse and better": ({"query": ASKED, "better": TOLD, "worse": TOLD}, "rename: {query: prompt}", ""),
}  # fmt: skip


def step(folder: Path, **fields: Any) -> Load:
    return Load(LoadParams(**fields), StepContext(base_dir=folder))


def records(columns: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_line_to_write_fits_the_shape(tmp_path: Path, name: str, kind: str) -> None:
    columns, prompt, response = SHAPES[name]
    write(tmp_path / f"a.{kind}", records(columns))
    made = step(tmp_path, source=f"a.{kind}", format="table")
    assert made.line_for("prompt") == prompt
    if "response" not in columns:
        assert made.line_for("response") == response


@pytest.mark.parametrize("name", [name for name, (_, prompt, _) in SHAPES.items() if prompt])
def test_the_line_mends_what_it_is_said_of(tmp_path: Path, name: str) -> None:
    columns, prompt, _ = SHAPES[name]
    path = write(tmp_path / "a.csv", records(columns))
    import yaml

    rows, _ = load(path, **yaml.safe_load(prompt))
    assert len(rows) == 3
    assert all(row["prompt"][-1]["content"].strip() for row in rows)
    if "context" in columns and any(columns["context"]):
        assert columns["context"][0] in rows[0]["prompt"][-1]["content"]


@pytest.mark.parametrize("name", ["dialogue", "turns", "chat", "contents"])
def test_turns_under_another_name_are_messages(tmp_path: Path, name: str) -> None:
    turns = [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]
    path = write(tmp_path / "a.jsonl", [{"id": 1, name: turns}])
    line = step(tmp_path, source="a.jsonl").line_for("prompt")
    assert line == f"rename: {{{name}: messages}}"
    (row,), _ = load(path, rename={name: "messages"})
    assert (row["prompt"][0]["content"], row["response"]) == ("q", "a")


@pytest.mark.parametrize("fields", [{}, {"format": "preference"}, {"rename": {"good": "chosen", "bad": "rejected"}}])
def test_what_a_format_lacks_is_told_with_the_line_to_write(tmp_path: Path, fields: dict[str, Any]) -> None:
    better, worse = ("good", "bad") if "rename" in fields else ("chosen", "rejected")
    path = write(tmp_path / "a.jsonl", [{"user_input": asked, better: "Yes.", worse: "No."} for asked in ASKED])
    (found,) = step(tmp_path, source=path.name, **fields).check()
    assert (found.hint, "no `prompt`" in found.message) == ("write `rename: {user_input: prompt}`", True)
    rows, _ = load(path, **{**fields, "rename": {**fields.get("rename", {}), "user_input": "prompt"}})
    assert [row["chosen"] for row in rows] == ["Yes."] * 3


def test_two_answers_and_a_choice_are_a_pair(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": "q", "response_a": "x y z", "response_b": "u v w", "winner": "model_a"}])
    for wanted in ("chosen", "rejected"):
        assert step(tmp_path, source="a.jsonl").line_for(wanted) == "format: compared"


def test_the_source_s_own_name_is_in_the_line_where_it_is_renamed_already(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", records({"q": ASKED}))
    assert step(tmp_path, source="a.csv", rename={"q": "goal"}).line_for("prompt") == "rename: {q: prompt}"


@needs(*(REAL_DATA / name for name in ("xstest_prompts.csv", "released_chains_half.jsonl", "released_samples_half.jsonl")))
@pytest.mark.parametrize(
    ("file", "wanted", "line"),
    [
        ("xstest_prompts.csv", "prompt", "rename: {prompt: prompt}"),
        ("released_chains_half.jsonl", "prompt", "rename: {rl_prompt: prompt}"),
        ("released_chains_half.jsonl", "response", "rename: {initial_response: completion}"),
        ("released_samples_half.jsonl", "prompt", "rename: {rl_prompt: prompt}"),
    ],
)
def test_the_line_fits_real_files_whatever_their_columns_are_called(tmp_path: Path, file: str, wanted: str, line: str) -> None:
    if file.endswith(".jsonl"):
        assert step(REAL_DATA, source=file, format="table").line_for(wanted) == line
    if file.endswith(".csv"):
        with (REAL_DATA / file).open(newline="", encoding="utf-8") as given:
            rows = list(csv.DictReader(given))
    else:
        rows = [json.loads(text) for text in (REAL_DATA / file).read_text(encoding="utf-8").splitlines()]
    own = line.split("{")[1].split(":")[0]
    write(tmp_path / "a.jsonl", [{"wer weiss" if name == own else name: value for name, value in row.items()} for row in rows])
    assert step(tmp_path, source="a.jsonl").line_for(wanted) == line.replace(f"{{{own}:", "{wer weiss:")
