"""Conversations in which tools are called: kept whole for `sft`, refused by name and number by who can't use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import SpecError
from caiflow.engine.spec.load import load_spec
from support.chat_templates import WITH_TOOLS
from support.loading import load, loaded, said, write

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": {"place": {"type": "string"}}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
PLAIN = {"messages": [*said("Hi"), *said("Yo", "assistant")]}
END = said("12 degrees.", "assistant")
OPENAI = [
    *said("Weather?"),
    {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "c1", "function": {
        "name": "weather", "arguments": '{"place": "Oslo"}'}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "12"},
    *END,
]  # fmt: skip
FORMER = [
    *said("Weather?"),
    {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": '{"place": "Oslo"}'}},
    {"role": "function", "name": "weather", "content": "12"},
    *END,
]
SHARED = [
    {"from": "human", "value": "Weather?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"place": "Oslo"}}'},
    {"from": "observation", "value": "12"},
    {"from": "gpt", "value": "12 degrees."},
]
FORMS: dict[str, dict[str, Any]] = {
    "openai": {"messages": OPENAI, "tools": TOOLS},
    "former": {"messages": FORMER, "tools": json.dumps(TOOLS)},
    "sharegpt": {"conversations": SHARED, "tools": json.dumps(TOOLS)},
    "as JSON text": {"messages": json.dumps(OPENAI), "tools": TOOLS},
}
MESSAGES = [*said("Weather?"), *said("", "assistant"), *said("12", "tool"), *END]
SPEC = """\
caiflow: 1
name: tools
constitution: harmless
models:
  base: {source: tiny}
  with_tools: {source: tiny, chat_template: tools.jinja}
steps:
  rows: {op: load, source: rows.jsonl}
"""


def problems(folder: Path, step: str, records: list[dict[str, Any]] | None = None) -> list[str]:
    """Return what is wrong with a step after a `load` of these records, of which half have tool turns by default."""
    write(folder / "rows.jsonl", [FORMS["openai"], PLAIN] if records is None else records)
    (folder / "tools.jinja").write_text(WITH_TOOLS)
    (folder / "spec.yaml").write_text(SPEC + f"  step: {step}\n")
    try:
        load_spec(folder / "spec.yaml")
    except SpecError as error:
        return [f"{problem.message}; {problem.hint}" for problem in error.problems]
    return []


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_with_tools_is_kept_whole_in_every_form(form: str) -> None:
    tools, plain = loaded([FORMS[form], {"conversations": PLAIN["messages"]} if form == "sharegpt" else PLAIN])
    assert (tools["messages"], tools["prompt"], tools["response"]) == (MESSAGES, MESSAGES[:3], "12 degrees.")
    use = json.loads(tools["tool_use"])
    assert use["tools"] == TOOLS
    called = [{name: call[name] for name in ("type", "function")} for call in use["turns"][1]["tool_calls"]]
    assert (called, use["turns"][0], use["turns"][3]) == ([CALL], {}, {})
    assert (plain["response"], plain["tool_use"]) == ("Yo", None)


def test_tools_that_are_used_are_not_noted_as_overlooked(tmp_path: Path) -> None:
    assert "notes" not in load(write(tmp_path / "a.jsonl", [FORMS["openai"]]))[1]
    (note,) = load(write(tmp_path / "b.jsonl", [{**PLAIN, "tools": TOOLS}]))[1]["notes"]
    assert "`tools`" in note


def test_ids_and_names_of_calls_and_results_are_kept() -> None:
    _, call, result, _ = json.loads(loaded([FORMS["openai"]])[0]["tool_use"])["turns"]
    assert (call["tool_calls"][0]["id"], result) == ("c1", {"tool_call_id": "c1"})
    assert json.loads(loaded([FORMS["former"]])[0]["tool_use"])["turns"][2] == {"name": "weather"}


def test_a_system_text_beside_stands_before_the_tools_too() -> None:
    (row,) = loaded([{**FORMS["openai"], "system": "Be brief."}])
    assert row["messages"][0] == said("Be brief.", "system")[0]
    assert "tool_calls" in json.loads(row["tool_use"])["turns"][2]


def test_a_conversation_that_ends_with_a_call_has_no_response() -> None:
    (row,) = loaded([{"messages": OPENAI[:2]}])
    assert (row["prompt"], row["response"], len(row["messages"])) == (said("Weather?"), None, 2)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([*said("q"), {"role": "assistant", "tool_calls": [{"function": {}}]}], "calls a tool without its `name`"),
        ([{"role": "tool", "content": "12"}, *END], "no human turn"),
    ],
)
def test_what_can_t_be_a_call_is_refused_by_name(tmp_path: Path, messages: list[dict[str, Any]], reason: str) -> None:
    (found,) = problems(tmp_path, "{op: filter, input: rows, drop: [duplicates]}", [{"messages": messages}, PLAIN])
    assert reason in found
    assert "rows.jsonl:1 (1 of the 2 records can't be read)" in found


def test_tool_turns_before_answers_that_are_compared_are_refused_by_name(tmp_path: Path) -> None:
    pair = {"messages": OPENAI[:3], "chosen": "12 degrees.", "rejected": "Cold."}
    (found,) = problems(tmp_path, "{op: dpo, input: rows, model: base}", [pair, {**PLAIN, "chosen": "a", "rejected": "b"}])
    assert "rows.jsonl:1 (1 of the 2 records can't be read)" in found
    assert "tool" in found


@pytest.mark.parametrize(
    "step",
    [
        "{op: generate, input: rows, model: base}",
        "{op: critique, input: rows, model: base}",
        "{op: revise, input: rows, model: base}",
        "{op: judge, input: rows, model: base, candidates: [response, response2]}",
        "{op: grade, input: rows, model: base, question: Is it kind?}",
        "{op: rl, input: rows, model: base, rewards: {with_tools: 1}}",
        "{op: evaluate, inputs: {set: rows}, models: [base]}",
    ],
)
def test_who_asks_a_model_refuses_them_with_their_number(tmp_path: Path, step: str) -> None:
    records = [{**FORMS["openai"], "response2": "x"}, {**PLAIN, "response2": "y"}, {**PLAIN, "response2": "z"}]
    found = [text for text in problems(tmp_path, step, records) if "tool" in text]
    assert len(found) == 1, problems(tmp_path, step, records)
    assert "tool calls and tool turns, which 1 of 3 rows of `rows` have, are for `sft` alone" in found[0]
    assert 'drop: [{where: "tool_use != None"}]' in found[0]


def test_sft_takes_them_under_a_template_that_does(tmp_path: Path) -> None:
    assert problems(tmp_path, "{op: sft, input: rows, model: with_tools}") == []
    (found,) = problems(tmp_path, "{op: sft, input: rows, model: base}")
    assert "the chat template of `base` has no tool calls and tool turns, which 1 of 2 rows of `rows` have" in found
    (found,) = problems(tmp_path, "{op: sft, input: rows, scratch: {}}")
    assert "of a model from nothing has no tool calls and tool turns, which 1 of 2 rows" in found
    assert problems(tmp_path, "{op: sft, input: rows, model: base}", [PLAIN]) == []


def test_the_line_that_leaves_them_out_does(tmp_path: Path) -> None:
    from caiflow.engine.operator import StepContext
    from caiflow.engine.rows.folder import Rows
    from caiflow.operators.filtering.filter import Filter, FilterParams
    from support.tables import run_table

    rows, _ = load(write(tmp_path / "rows.jsonl", [FORMS["openai"], PLAIN]))
    assert len(rows) == 2
    params = FilterParams.model_validate({"input": "rows", "drop": [{"where": "tool_use != None"}]})
    kept, _ = run_table(Filter(params, StepContext()), tmp_path / "kept", {"rows": Rows(tmp_path / "out0")})
    assert [row["response"] for row in kept.pylist()] == ["Yo"]
