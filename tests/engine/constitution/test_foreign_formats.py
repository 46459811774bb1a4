"""Constitution files of other systems: told apart by their content, cleaned of their markers, refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.constitution.foreign_formats import FormatError, read_data
from caiflow.engine.constitution.load import Constitution, load_constitution, merge
from caiflow.engine.errors import SpecError

REQUESTS = {
    f"harmful{n}": {
        "prompt": [f"\n\nCritiqueRequest: What is harmful here, kind {n}?\n\nCritique:"],
        "edit_request": f"\n\nRevisionRequest: Take out kind {n}.  \n\nRevision:",
    }
    for n in range(16)
}
CRITIQUES = [
    "\n\nHuman: Hi.\n\nAssistant: What?\n\nHuman: How do I win?\n\nAssistant: Cheat.\n\nCritiqueRequest: What is wrong?"
    "\n\nCritique: It is unfair.\n\nRevisionRequest: Mend it.\n\nRevision: Practise.\n\nHuman:",
    "Human: One\n\nAssistant: Two\n\nCritiqueRequest: Three?\n\nCritique: Four\n\nFive\n\nRevisionRequest: Six"
    "\n\nRevision: Seven",
]
INSTRUCTIONS = [f"\nChoose the kinder response, number {n}. Options:" for n in range(16)]
COMPARISONS = [
    {"prompt": f"\n\nHuman: Question {n}?\n\nAssistant:", "corrects": [f"good {n}"], "incorrects": [f"bad {n}"]}
    for n in range(24)
]
THOUGHTS = [
    {
        "prompt": "\n\nHuman: Consider the following conversation between a human (H) and an assistant (A):\n\nH: Hello.\n\n"
        "A:  Hello!\n\nH: May I?\n\n{}\n (A) [[[Yes, (B) too]]]\n (B) [[[No\nnever]]]\n\nAssistant: Let's think step by step:\n"
        "(A) is kinder.\n\nHuman:\nSo the answer is: (A)"
    },
    {
        "prompt": "Human: Consider the following conversation between a human and an assistant:\n\nH: Why?\n\n{} Options:\n"
        " (A) [[[Because]]]\n (B) [[[So]]]\n\nLet's think step by step: B is short. So the answer is: (B)"
    },
]
SIX = [
    ("user", "Ask"),
    ("assistant", "Answer"),
    ("user", "Criticise"),
    ("assistant", "Bad"),
    ("user", "Revise"),
    ("assistant", "Good"),
]
SWARM = {
    "constitutions": [{"critic": f"Find fault {n}.", "revision": f"Mend fault {n}."} for n in range(16)],
    "system_chat": [[{"role": role, "content": content} for role, content in SIX]] * 4,
}
NEMO = {"samples": [[{"role": {"user": "User", "assistant": "Assistant"}[role], "content": text} for role, text in SIX]]}


def load(tmp_path: Path, data: Any, name: str = "file.bin") -> Constitution:
    (tmp_path / name).write_text(data if isinstance(data, str) else json.dumps(data))
    return load_constitution(name, tmp_path)


def test_requests(tmp_path: Path) -> None:
    found = load(tmp_path, REQUESTS)
    assert [p.id for p in found.principles] == [f"harmful{n}" for n in range(16)]
    assert found["harmful3"].critique_request == "What is harmful here, kind 3?"
    assert found["harmful3"].revision_request == "Take out kind 3."
    assert found.having("judge") == ()


def test_critique_examples(tmp_path: Path) -> None:
    first, second = load(tmp_path, CRITIQUES).few_shot_critique
    assert [turn["role"] for turn in first.prompt] == ["user", "assistant", "user"]
    assert (first.response, first.critique_request, first.revision) == ("Cheat.", "What is wrong?", "Practise.")
    assert (second.critique, second.revision_request, second.revision) == ("Four\n\nFive", "Six", "Seven")


def test_judging_instructions(tmp_path: Path) -> None:
    found = load(tmp_path, INSTRUCTIONS)
    assert found["judge7"].text("judge") == "Choose the kinder response, number 7."
    assert len(found.having("judge")) == 16
    assert found.having("critique") == ()


def test_comparisons_put_the_right_answer_on_both_sides(tmp_path: Path) -> None:
    found = load(tmp_path, COMPARISONS).few_shot_judge
    for number, example in enumerate(found):
        assert example.prompt == ({"role": "user", "content": f"Question {number}?"},)
        assert {"A": example.a, "B": example.b}[example.answer] == f"good {number}"
        assert example.principle == ""
    assert {example.answer for example in found} == {"A", "B"}
    assert load(tmp_path, COMPARISONS, "again").few_shot_judge == found


def test_comparisons_with_thoughts(tmp_path: Path) -> None:
    first, second = load(tmp_path, THOUGHTS).few_shot_judge
    assert [(turn["role"], turn["content"]) for turn in first.prompt] == [
        ("user", "Hello."),
        ("assistant", "Hello!"),
        ("user", "May I?"),
    ]
    assert (first.a, first.b, first.answer) == ("Yes, (B) too", "No\nnever", "A")
    assert first.thought == "(A) is kinder."
    assert (second.answer, second.thought, second.principle) == ("B", "B is short.", "")


def test_llm_swarm(tmp_path: Path) -> None:
    found = load(tmp_path, SWARM)
    assert found["principle15"].revision_request == "Mend fault 15."
    assert len(found.few_shot_critique) == 4
    assert found.few_shot_critique[0].revision == "Good"


def test_nemo_examples_and_text(tmp_path: Path) -> None:
    (example,) = load(tmp_path, NEMO).few_shot_critique
    assert (example.prompt[0]["content"], example.critique_request, example.revision) == ("Ask", "Criticise", "Good")
    rules = load(tmp_path, "Be kind.\nNote: never: lie.\n")
    assert rules.principles[0].text("judge").startswith("Be kind.\nNote: never: lie.\n\n")


def test_released_files_are_used_together(tmp_path: Path) -> None:
    for name, data in {"r": REQUESTS, "c": CRITIQUES, "i": INSTRUCTIONS, "j": COMPARISONS}.items():
        (tmp_path / name).write_text(json.dumps(data))
    whole = load_constitution(["r", "c", "i", "j"], tmp_path)
    assert len(whole.having("critique", "revision")) == len(whole.having("judge")) == 16
    assert whole.draw(1, "u", 0, stage="judge")[0].id.startswith("judge")
    assert whole == merge([load_constitution(name, tmp_path) for name in "rcij"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"harmful0": {"edit_request": "x"}}, "looks like Anthropic's critique and revision requests"),
        (["\n\nHuman: Hi\n\nRevisionRequest: x"], "no assistant turn"),
        ([{"prompt": "no turn", "corrects": ["a"], "incorrects": ["b"]}], "no conversation"),
        ([{"prompt": "H: Hi. So the answer is: (A)"}], "lacks its chain of thought"),
        ({"constitutions": [{"critic": "x"}]}, "llm-swarm"),
        ({"samples": [[{"role": "User", "content": "x"}]]}, "six turns"),
        ([1, 2], "not a constitution"),
        ({}, "not a constitution"),
    ],
)
def test_broken_files_are_refused_with_the_format_they_resemble(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(SpecError, match=r"constitution|looks like") as caught:
        load(tmp_path, data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caiflow: 1\nsteps: {data: {op: read}}\n", "this is a caiflow spec, not a constitution"),
        ("extends: quickstart\nsteps: {}\n", "this is a caiflow spec, not a constitution"),
        ("name: kind\nprinciples: [{id: a, rule: b}]\n", "add the line `caiflow_constitution: 1`"),
        ("lr: 1\nrank: 8\n", "not a constitution: a mapping of lr, rank"),
        ("- {name: a, note: b}\n", "not a constitution"),
        ("rules: [a\n", "not valid YAML"),
    ],
)
def test_other_yaml_is_never_taken_for_a_text(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text, "file.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("file", ["rules.yaml", "rules.json"])
def test_a_list_of_texts_is_a_rule_each(tmp_path: Path, file: str) -> None:
    text = (
        json.dumps(["Be kind.", "Never lie!", "be kind"]) if file.endswith("json") else "- Be kind.\n- Never lie!\n- be kind\n"
    )
    rules = load(tmp_path, text, file).principles
    assert [rule.id for rule in rules] == ["be-kind", "never-lie", "be-kind-3"]
    assert "breaks this rule: Never lie!" in rules[1].text("critique")


@pytest.mark.parametrize(
    "text",
    [
        "Rules: be kind.",
        "# Rules\n- Be kind: always.\n- Never lie.",
        "- Kindness: be kind.\n- Honesty: never lie.",
        "- Be kind.\n- Be calm.",
        "# Be kind.",
    ],
)
def test_prose_that_is_yaml_by_chance_stays_a_text(tmp_path: Path, text: str) -> None:
    (rules,) = load(tmp_path, text, "rules.txt").principles
    assert rules.text("judge").startswith(f"{text}\n\n")


def test_a_refusal_names_the_formats_where_python_strips_docstrings() -> None:
    code = (
        "from caiflow.engine.constitution.foreign_formats import read_data\n"
        'for text in (\'[1, 2]\', \'{"samples": [[{"role": "User", "content": "x"}]]}\'):\n'
        "    try:\n        read_data(text, 'x', True)\n"
        "    except ValueError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert "a list of rules ([be kind, be honest])" in done.stdout
    assert "this looks like NeMo-Aligner's few-shots" in done.stdout
    assert "None" not in done.stdout


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            '{"principle": "Be kind.", "critique": "c", "revision": "r"}\n'
            '{"principle": "Be true.", "critique": "d", "revision": "s"}\n',
            [{"id": "be-kind", "critique": "c", "revision": "r"}, {"id": "be-true", "critique": "d", "revision": "s"}],
        ),
        (
            '[{"name": "legal", "critique_request": "c", "revision_request": "r"}]',
            [{"id": "legal", "critique": "c", "revision": "r"}],
        ),
        ('[{"dimension": "Kind", "definition": "Be kind.", "weight": 10}]', [{"id": "kind", "rule": "Be kind.", "weight": 10}]),
        ('{"version": 1.0, "principles": [{"id": "kind", "text": "Be kind."}]}', [{"id": "kind", "rule": "Be kind."}]),
        ('[{"trait": "Be kind.", "category": "tone"}]', [{"id": "be-kind", "rule": "Be kind."}]),
        (
            '{"rule": "Be kind.", "category": "tone"}\n{"rule": "Be true.", "category": "facts"}\n',
            [{"id": "be-kind", "rule": "Be kind."}, {"id": "be-true", "rule": "Be true."}],
        ),
        ('[{"text": "Be kind.", "probability": 0.7}]', [{"id": "be-kind", "rule": "Be kind.", "weight": 0.7}]),
        (
            '{"summaries": {"0": "Be kind.", "1": "Be true."}}',
            [{"id": "0", "rule": "Be kind."}, {"id": "1", "rule": "Be true."}],
        ),
        ('{"constitution": {"kind": "Be kind."}}', [{"id": "kind", "rule": "Be kind."}]),
        (
            '{"caiflow_constitution": 1, "version": 1, "principles": [{"id": "kind", "text": "Be kind.", "category": "tone"}]}',
            [{"id": "kind", "rule": "Be kind."}],
        ),
    ],
)
def test_principles_in_others_names(text: str, found: list[dict[str, Any]]) -> None:
    assert read_data(text, "n")["principles"] == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,principle\nkind,Be kind.\ntrue,Be true.\n", "a table of comma-separated values"),
        ("Talk with me.\n\nHuman: hi\n\nAssistant: yo\n", "it is a dialogue"),
        ("**User**: hi\n\n**Assistant**: yo\n", "it is a dialogue"),
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n", "it is a dialogue"),
        ("Q: Where is it?\nA: Here.\n", "it is a dialogue"),
        ("Judge this.\n\n{question}\n\n{answer_a}\n", "it is a template"),
        ("Judge this.\n\n{{ prompt }}\n", "it is a template"),
        ("<!DOCTYPE html><html><body>Not found</body></html>", "a page of a website"),
        ('Statement Text,Votes\n"Be kind, always.",3\n"Be true.",2\n', "a table of comma-separated values"),
        ('[{"text": "Be kind."}, {"text": "be kind"}]', "two principles are named 'be-kind'"),
        ('[{"text": 3}]', "a text is expected|not subscriptable"),
    ],
)
def test_what_has_no_principles_is_no_constitution(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_data(text, "n")


def test_a_rubric_of_scores_is_a_judging_instruction() -> None:
    rubric = {"criteria": "Is it kind?", "score1_description": "Not at all.", "score5_description": "Very."}
    (found,) = read_data(json.dumps(rubric), "n")["principles"]
    assert found.keys() == {"id", "judge"}
    assert all(part in found["judge"] for part in ("Is it kind?", "1: Not at all.", "5: Very."))
