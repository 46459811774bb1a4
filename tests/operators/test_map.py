"""`map`: columns are made, joined, renamed and left out; everything else of a row stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from caiflow.engine.operator import StepContext
from caiflow.engine.rows.columns import Columns, Row
from caiflow.engine.rows.folder import Rows
from caiflow.engine.spec.load import check_spec
from caiflow.operators.map import Map, MapParams
from support.loading import said, texts
from support.tables import rows_of, run_table, write_jsonl

ROWS: list[Row] = [
    {"uid": "1", "context": "The pot is blue.", "question": "Which?", "n": 1, "score": 0.5, "tags": ["a"], "more": {"x": 1}},
    {"uid": "2", "context": None, "question": "Who?", "n": None, "score": None, "tags": [], "more": {"x": 2}},
]


def step(**fields: Any) -> Map:
    return Map(MapParams(input="rows", **fields), StepContext())


def mapped(folder: Path, rows: list[Row], **fields: Any) -> Rows:
    return run_table(step(**fields), folder / "out", {"rows": rows_of(folder / "in", rows)})[0]


def test_a_text_over_columns_becomes_the_prompt_and_all_else_stays(tmp_path: Path) -> None:
    made = mapped(tmp_path, ROWS, set={"prompt": '{{ context or "" }}|{{ question }}', "topic": "{{ more.x }}"})
    rows = made.pylist()
    assert [row.pop("prompt") for row in rows] == [said("The pot is blue.|Which?"), said("|Who?")]
    assert [row.pop("topic") for row in rows] == ["1", "2"]
    assert rows == ROWS
    before = rows_of(tmp_path / "again", ROWS).columns
    assert {name: kind for name, kind in made.columns.items() if name in before} == before


def test_columns_are_joined_where_they_have_something(tmp_path: Path) -> None:
    made = mapped(
        tmp_path, ROWS, join={"prompt": ["context", "question"], "line": {"columns": ["question", "n"], "separator": " "}}
    )
    assert [row["prompt"] for row in made.pylist()] == [said("The pot is blue.\n\nWhich?"), said("Who?")]
    assert [row["line"] for row in made.pylist()] == ["Which? 1", "Who?"]


def test_columns_are_renamed_and_left_out(tmp_path: Path) -> None:
    made = mapped(tmp_path, ROWS, rename={"question": "prompt", "score": "p_chosen", "n": "question"}, drop=["context", "more"])
    assert made.pylist() == [
        {"uid": "1", "prompt": said("Which?"), "question": 1, "p_chosen": 0.5, "tags": ["a"]},
        {"uid": "2", "prompt": said("Who?"), "question": None, "p_chosen": None, "tags": []},
    ]


@settings(max_examples=30)
@given(texts, texts)
def test_any_text_comes_through_as_it_stands(tmp_path_factory: pytest.TempPathFactory, one: str, two: str) -> None:
    rows = [{"uid": "1", "a": one, "b": two, "response": two}]
    fields = {"set": {"c": "{{ a }}"}, "join": {"prompt": ["a", "b"]}, "rename": {"response": "revision"}, "drop": ["b"]}
    (row,) = mapped(tmp_path_factory.mktemp("any"), rows, **fields).pylist()
    assert row == {"uid": "1", "a": one, "revision": two, "c": one, "prompt": said(f"{one}\n\n{two}")}


def test_a_system_turn_stays_before_a_new_prompt(tmp_path: Path) -> None:
    rows = [{"uid": "1", "prompt": [*said("Be kind.", "system"), *said("Hi")]}]
    (row,) = mapped(tmp_path, rows, set={"prompt": "{{ prompt[-1].content }}!"}).pylist()
    assert row["prompt"] == [*said("Be kind.", "system"), *said("Hi!")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ context }}", "row 2: the template of `prompt`: a null would be written as `None`; say what stands for it"),
        ("{{ question.__class__.__mro__ }}", "row 1: the template of `prompt`: .*unsafe"),
        ('{{ "" }}', "row 1: the template of `prompt` comes out blank"),
    ],
)
def test_a_row_that_a_text_cant_be_made_of_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mapped(tmp_path, ROWS, set={"prompt": text})


def test_what_comes_out_is_known_before_the_run() -> None:
    given = Columns({"uid": "text", "question": "text", "n": "integer", "a": "text"}, gaps={"question": "some", "n": "all"})
    fields = {"set": {"b": "{{ a }}"}, "rename": {"question": "prompt", "n": "m"}, "drop": ["a"]}
    made = step(**fields).columns({"rows": given})
    assert made.types == {"uid": "text", "b": "text", "prompt": "messages", "m": "integer"}
    assert made.gaps == {"prompt": "some", "m": "all"}
    assert step(**fields).needs() == {"rows": ["a", "question", "n"]}
    assert step(set={"b": "{% for x in y %}{{ x }}{% endfor %}"}, drop=["b"]).needs() == {"rows": ["y"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("set: {prompt: '{{ a'}", "not a Jinja template"),
        ("set: {messages: '{{ q }}'}", "`messages` holds conversations"),
        ("drop: [uid]", "`uid` names the rows"),
        ("rename: {q: n}", "there is a column `n` already"),
        ("rename: {q: x, n: x}", "two columns become `x`"),
        ("rename: {n: response}", "`response` is of type text, and `n` of type integer"),
        ("rename: {other: x}", "`rows` has no column `other`"),
        ("set: {x: '{{ other }}'}", "`rows` has no column `other`"),
        ("description: nothing", "`map` changes nothing"),
    ],
)
def test_what_cant_be_is_told_at_its_line(tmp_path: Path, fields: str, message: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"q": "Why?", "n": 1}])
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"caiflow: 1\nname: m\nsteps:\n  rows: {{op: load, source: a.jsonl}}\n  made: {{op: map, input: rows, {fields}}}\n"
    )
    (found,) = check_spec(spec)
    assert (found.line, message in found.message) == (5, True), found
