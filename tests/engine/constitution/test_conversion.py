"""Shapes in which people have principles: read as they are, or answered once with the converted file offered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.constitution.load import STAGES, Constitution, load_constitution
from caiflow.engine.errors import SpecError
from support.commands import command_here

KIND, TRUE = "Be kind to people.", "Never tell a lie."


def load(tmp_path: Path, text: str | Any, name: str = "file.json") -> Constitution:
    (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text))
    return load_constitution(name, tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        {"kindness": KIND, "honesty": TRUE},
        {"name": "mine", "version": 2, "principles": {"kindness": KIND, "honesty": TRUE}},
        {"kindness": {"definition": KIND, "category": "tone"}, "honesty": {"text": TRUE}},
        {"traits": [{"name": "kindness", "trait": KIND}, {"name": "honesty", "trait": TRUE}]},
        {"description": "Ours.", "rules": {"kindness": KIND, "honesty": TRUE}},
        [{"title": "kindness", "statement": KIND}, {"title": "honesty", "guideline": TRUE}],
    ],
)
def test_lists_and_mappings_are_read(tmp_path: Path, data: Any) -> None:
    found = load(tmp_path, data)
    assert [p.id for p in found.principles] == ["kindness", "honesty"]
    assert "breaks this rule: Be kind to people" in found["kindness"].text("critique")


@pytest.mark.parametrize(
    "data", [{"tone": [KIND], "facts": [TRUE]}, {"principles": [KIND, TRUE]}, f"{json.dumps(KIND)}\n{json.dumps(TRUE)}\n"]
)
def test_rules_in_groups_under_a_key_and_as_json_lines_are_read(tmp_path: Path, data: Any) -> None:
    found = load(tmp_path, data, "file.jsonl" if isinstance(data, str) else "file.json")
    assert [p.id for p in found.principles] == ["be-kind-to-people", "never-tell-a-lie"]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ({"name": "kind", "critique_prompt": "C?", "rewrite": "R."}, ("C?", "R.", None)),
        ({"name": "kind", "critic": "C?", "edit_request": "R.", "judge_prompt": "J?"}, ("C?", "R.", "J?")),
        ({"name": "kind", "preference": "J?"}, (None, None, "J?")),
    ],
)
def test_requests_under_others_names_go_to_their_stage(tmp_path: Path, data: Any, texts: tuple[str | None, ...]) -> None:
    (kind,) = load(tmp_path, [data]).principles
    assert (kind.critique, kind.revision, kind.judge) == texts


def test_weights_are_draw_weights(tmp_path: Path) -> None:
    found = load(tmp_path, [{"name": "a", "text": KIND, "weight": 9}, {"name": "b", "text": TRUE, "weight": 1}])
    drawn = [found.draw(3, f"row{n}", 0)[0].id for n in range(500)]
    assert 420 < drawn.count("a") < 475


def test_prose_serves_every_stage(tmp_path: Path) -> None:
    prose = "# What we want\n\nWe want it to be kind: always.\n\nIt should never lie, and say what it doesn't know.\n"
    (rules,) = load(tmp_path, prose, "ours.md").principles
    for stage in STAGES:
        assert rules.text(stage).startswith(prose.strip())
        assert len(rules.text(stage)) > len(prose) + 40


PAIR = (
    "Act as an impartial judge of two assistants' answers to the question shown below. Prefer the answer that is true, short "
    'and kind. Don\'t let the order sway you. Give a short explanation first. Then write your verdict in this form: "[[A]]" if '
    'A is better, "[[B]]" if B is better, and "[[C]]" for a tie.'
)
SHOWN = "[Question]\n{question}\n\n[Start of A]\n{answer_a}\n[End of A]\n\n[Start of B]\n{answer_b}\n[End of B]"
SINGLE = (
    "[Instruction]\nJudge the answer below by how true and useful it is. Rate the answer on a scale of 1 to 10 as "
    '"[[rating]]".\n\n[Question]\n{question}\n\n[Answer]\n{answer}'
)
PROMPTS = [
    {"name": "pair", "type": "pairwise", "system_prompt": PAIR, "prompt_template": SHOWN, "output_format": "[[A]]"},
    {"name": "math", "type": "pairwise", "system_prompt": PAIR, "prompt_template": "{ref_answer_1}" + SHOWN},
    {"name": "one", "type": "single", "system_prompt": "You are helpful.", "prompt_template": SINGLE},
]


def test_judge_prompts_are_judging_instructions_without_their_form(tmp_path: Path) -> None:
    found = load(tmp_path, "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), "judge_prompts.jsonl")
    (pair,) = found.principles
    assert pair.text("judge") == (
        "Act as an impartial judge of two assistants' answers to the question shown below. Prefer the answer that is true, "
        "short and kind. Don't let the order sway you. Which response is better by this?"
    )
    assert "Without math" in found.description
    (one,) = load(tmp_path, [PROMPTS[2]]).principles
    assert one.text("judge") == "Judge the answer below by how true and useful it is. Which response is better by this?"
    with pytest.raises(SpecError, match="wants a reference answer"):
        load(tmp_path, [PROMPTS[1]])


MANY = "".join(f"  - {{id: p{n}, rule: be kind {n}, category: tone, severity: 3}}\n" for n in range(17))


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("theirs.yaml", f"caiflow_constitution: 1\nname: mine\nprinciples:\n{MANY}", "unknown key `category`"),
        ("theirs.yaml", f"name: mine\nversion: 2\nprinciples:\n{MANY}", "doesn't say that it is a constitution"),
        ("mine.yaml", MANY.replace("  - ", "- "), "unknown key `category`"),
        ("theirs.csv", f"name,principle\np0,{KIND}\np1,{TRUE}\n", "a table of comma-separated values"),
    ],
)
def test_another_shape_is_answered_once_and_the_converted_file_is_right(
    tmp_path: Path, name: str, text: str, first: str
) -> None:
    (tmp_path / name).write_text(text)
    checked = command_here(tmp_path, "constitution", "check", name)
    assert checked.returncode == 2
    told = checked.stdout + checked.stderr
    assert first in told
    assert f"caiflow constitution convert {name} > {'converted' if name == 'mine.yaml' else 'mine'}.yaml" in told
    assert told.count(name) == 2
    converted = command_here(tmp_path, "constitution", "convert", name)
    assert converted.returncode == 0, converted.stderr
    (tmp_path / "converted.yaml").write_text(converted.stdout)
    again = command_here(tmp_path, "constitution", "check", "converted.yaml")
    assert again.returncode == 0, again.stderr
    assert [p.id for p in load_constitution("converted.yaml", tmp_path).principles][:2] == ["p0", "p1"]


def test_a_slip_in_ones_own_file_stays_a_slip(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("caiflow_constitution: 1\nname: a\nprinciples:\n  - {id: p, rule: be kind, gards: x}\n")
    for action in ("check", "convert"):
        done = command_here(tmp_path, "constitution", action, "mine.yaml")
        assert done.returncode == 2
        assert "unknown key `gards`; did you mean `guards`?" in done.stderr
        assert "convert" not in done.stderr


@pytest.mark.parametrize(
    "data",
    [
        [{"role": "user", "content": "Be kind to me."}, {"role": "assistant", "content": "I will be."}],
        [{"instruction": "Say hello.", "input": "", "output": "Hello to you."}],
        {"name": "mine", "description": "A good file of mine"},
        {"lr": 1, "rank": 8},
        {"a": [1, 2]},
        {"a": {"b": {"c": "Be kind to people."}}},
        [{"prompt_template": 3}],
        [],
        "",
    ],
)
def test_what_has_no_principles_is_refused(tmp_path: Path, data: Any) -> None:
    with pytest.raises(SpecError):
        load(tmp_path, data)


def test_check_says_what_each_stage_can_use_and_refuses_examples_alone(tmp_path: Path) -> None:
    (tmp_path / "judging.json").write_text(json.dumps([{"name": "kind", "judge_prompt": "Which is kinder?"}]))
    checked = command_here(tmp_path, "constitution", "check", "judging.json")
    assert checked.returncode == 0
    assert "critique: nothing, since no principle has a `critique` text or a `rule`" in checked.stdout
    assert "judge: 1 of 1 principles, 0 few-shot examples" in checked.stdout
    example = {"prompt": "\n\nHuman: Q?\n\nAssistant:", "corrects": ["good"], "incorrects": ["bad"]}
    (tmp_path / "examples.json").write_text(json.dumps([example]))
    refused = command_here(tmp_path, "constitution", "check", "judging.json", "examples.json")
    assert refused.returncode == 2
    assert "examples.json:1:1: it has no principles, and 1 few-shot examples; list it" in refused.stderr
