"""A pattern's files as one source: what an empty one doesn't say, and what only a later one does."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.operator import StepContext
from caiflow.operators.load import Load, LoadParams
from support.tables import run_table, write_jsonl


def step(base_dir: Path, source: str, **fields: Any) -> Load:
    return Load(LoadParams(source=source, **fields), StepContext(0, base_dir))


@pytest.mark.parametrize(
    ("name", "empty"),
    [("a.jsonl", b""), ("a.jsonl", b"\n\n"), ("a.csv", b"prompt,completion\n"), ("a.jsonl.gz", gzip.compress(b"", mtime=0))],
)
def test_an_empty_file_before_the_others_says_nothing_of_their_format(tmp_path: Path, name: str, empty: bytes) -> None:
    (tmp_path / name).write_bytes(empty)
    write_jsonl(tmp_path / "b.jsonl", [{"question": "Tea?", "completion": "Here."}] * 2)
    load = step(tmp_path, "[ab].*", rename={"question": "prompt"})
    assert {"prompt", "response"} <= set(load.columns({}).types)
    assert (load.look(1).format, load.look(1).rows[0]["response"]) == ("prompt", "Here.")
    rows, metrics = run_table(load, tmp_path / "out")
    assert metrics["format"] == "prompt"
    assert [row["response"] for row in rows.pylist()] == ["Here.", "Here."]


def test_what_a_later_file_has_is_known_before_the_run(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Tea?", "n": 1, "completion": None}])
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "Key?", "n": "one", "completion": "Here.", "topic": "home"}])
    load = step(tmp_path, "*.jsonl")
    columns = load.columns({})
    assert {name: columns.types[name] for name in ("n", "topic", "response")} == {
        "n": "text",
        "topic": "text",
        "response": "text",
    }
    assert columns.gaps == {"response": "some"}
    assert [(row["n"], row["topic"]) for row in run_table(load, tmp_path / "out")[0].pylist()] == [("1", None), ("one", "home")]


def test_where_not_every_file_is_looked_into_nothing_is_said_of_the_others(tmp_path: Path) -> None:
    for number in range(12):
        write_jsonl(tmp_path / f"{number:02}.jsonl", [{"prompt": "Tea?", "n": number if number < 11 else "eleven"}])
    load = step(tmp_path, "*.jsonl")
    assert load.columns({}).types["n"] is None
    assert run_table(load, tmp_path / "out")[0].pylist()[-1]["n"] == "eleven"


@pytest.mark.parametrize(("one", "other"), [("a.txt", "a.jsonl"), ("a.csv", "a.tsv"), ("a.json", "a.jsonl")])
def test_a_file_that_is_read_otherwise_under_its_new_name_is_another_source(tmp_path: Path, one: str, other: str) -> None:
    for name in (one, other):
        write_jsonl(tmp_path / name, [{"prompt": "Tea?"}])
    assert step(tmp_path, one).identity() != step(tmp_path, other).identity()


def test_a_file_that_is_only_renamed_is_the_same_source(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.JSONL"):
        write_jsonl(tmp_path / name, [{"prompt": "Tea?"}])
    assert step(tmp_path, "a.jsonl").identity() == step(tmp_path, "b.JSONL").identity()
