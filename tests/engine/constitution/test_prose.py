"""Prose with ranks: each rule is a principle that says where it stands, and nothing else is."""

from __future__ import annotations

from pathlib import Path

from caiflow.engine.constitution.load import dump, load_constitution
from caiflow.engine.identity import digest
from caiflow.operators.judging.prompts import whole_instruction

RANKED = """\
# Our assistant

These are the things that we care about, in the order in which they count.

## 1. **Safety**

Never help anyone to hurt people.
That holds for yourself, too.

## 3. Use

1. Answer what was asked.
   - Say so where you can't.

2) Be brief.

That is no rule, but a remark.

## 2. Honesty

Say what you know, and what you don't.
"""


def load(folder: Path, text: str, name: str = "values.md") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_ranked_rules_are_principles_with_their_passages(tmp_path: Path) -> None:
    found = load_constitution(str(load(tmp_path, RANKED)))
    told = [(one.id, one.rank, one.passage, one.guards) for one in found.principles]
    assert told == [
        ("safety", 1, "values.md:7-8", "Safety"),
        ("answer-what-was-asked-say-so-where-you", 3, "values.md:12-13", "Use"),
        ("be-brief", 4, "values.md:15-15", "Use"),
        ("honesty", 2, "values.md:21-21", "Honesty"),
    ]
    lines = RANKED.splitlines()
    safety = found["safety"]
    assert safety.judge is not None
    assert safety.judge.startswith(" ".join(lines[6:8])), "in the words of its passage"
    assert safety.critique_request != safety.revision_request
    again = load_constitution(str(load(tmp_path, dump(found), "own.yaml")))
    assert again.principles == found.principles


def test_ranks_order_what_a_judge_is_shown_and_a_passage_moves_no_identity(tmp_path: Path) -> None:
    found = load_constitution(str(load(tmp_path, RANKED)))
    shown = whole_instruction(found.principles)
    assert shown.index("hurt people") < shown.index("what you don't") < shown.index("what was asked") < shown.index("Be brief")
    assert "the one listed first decides" in shown
    below = load_constitution(str(load(tmp_path, f"Moved down.\n\n{RANKED}", "moved.md")))
    assert below["safety"].passage == "moved.md:9-10"
    assert digest(below["safety"].identity) == digest(found["safety"].identity)
    assert "decides" not in whole_instruction([one.model_copy(update={"rank": None}) for one in found.principles])


def test_lists_and_headings_without_numbers_are_rules_without_ranks(tmp_path: Path) -> None:
    text = "# Kindness\n\n- Be kind.\n- Never mock\n  anybody.\n\n# Truth\n\nNever lie.\n"
    found = load_constitution(str(load(tmp_path, text)))
    assert [(one.id, one.rank, one.passage) for one in found.principles] == [
        ("be-kind", None, "values.md:3-3"), ("never-mock-anybody", None, "values.md:4-5"), ("truth", None, "values.md:9-9"),
    ]  # fmt: skip


def test_a_text_without_such_rules_is_one_principle(tmp_path: Path) -> None:
    for text in ("# What we want\n\nBe kind.\n\nBe brief.\n", "Be kind in 3. cases.\nAnd be brief.", "1. Only one.\n"):
        (rules,) = load_constitution(str(load(tmp_path, text))).principles
        assert (rules.id, rules.passage, rules.rank) == ("rules", "", None)
