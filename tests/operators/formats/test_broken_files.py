"""Files that are broken, locked or not what they seem: told before the run, with nothing of them lost in silence."""

from __future__ import annotations

import gzip
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caiflow.engine.operator import StepContext
from caiflow.operators.formats.files import read_lines
from caiflow.operators.load import Load, LoadParams
from support.tables import run_table, write_jsonl

RECORDS = [{"prompt": "Tea?"}, {"prompt": "Key?"}]
TURNS = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Here."}]


def told(base_dir: Path, source: str) -> tuple[str, str]:
    """Return the one finding of a check before the run."""
    (found,) = Load(LoadParams(source=source), StepContext(0, base_dir)).check()
    return found.message, found.hint


def deflated(path: Path) -> None:
    chance = random.Random(7)
    lines = "".join(json.dumps({"prompt": chance.random()}) + "\n" for _ in range(200))
    packed = bytearray(gzip.compress(lines.encode(), mtime=0))
    packed[12:60] = b"\xff" * 48  # the codes of its first block
    path.write_bytes(packed)


def zipped(path: Path) -> bytearray:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.jsonl", '{"prompt": "Tea?"}\n')
    return bytearray(path.read_bytes())


def flipped(path: Path) -> None:
    packed = zipped(path)
    packed[packed.find(b"Tea")] ^= 1
    path.write_bytes(packed)


def locked(path: Path) -> None:
    packed = zipped(path)
    for place in (6, packed.find(b"PK\x01\x02") + 8):  # the mark of a password, at the file and in the table of files
        packed[place] |= 1
    path.write_bytes(packed)


@pytest.mark.parametrize(
    ("name", "broken", "why"),
    [
        ("a.jsonl.gz", deflated, "Error -3 while decompressing data"),
        ("a.jsonl.zip", flipped, "Bad CRC-32"),
        ("a.jsonl.zip", locked, "is encrypted"),
    ],
)
def test_what_can_not_be_unpacked_is_told_with_its_name(
    tmp_path: Path, name: str, broken: Callable[[Path], None], why: str
) -> None:
    broken(tmp_path / name)
    message, _ = told(tmp_path, name)
    assert message.startswith(f"{name}: can't be unpacked: ")
    assert why in message


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("between", ["", "\n", " " * 3_000_000], ids=["nothing", "a line end", "blanks"])
@pytest.mark.parametrize("array", [RECORDS, TURNS], ids=["records", "turns"])
def test_a_second_array_is_not_lost(tmp_path: Path, name: str, between: str, array: list[dict[str, str]]) -> None:
    (tmp_path / name).write_text(json.dumps(array) + between + json.dumps(array))
    message, hint = told(tmp_path, name)
    assert message == f"{name}:1: more follows after the array"
    assert "a record a line" in hint


@pytest.mark.parametrize("end", ["", "\n", " \r\n\n" * 400_000], ids=["nothing", "a line end", "blanks"])
def test_blanks_after_an_array_are_nothing(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(RECORDS) + end)
    assert [line.data for line in read_lines(tmp_path / "a.json")] == RECORDS


def test_two_columns_of_one_name_are_told_of_parquet_too(tmp_path: Path) -> None:
    table = pa.table([pa.array(["Tea?"]), pa.array(["a"]), pa.array(["b"])], names=["prompt", "answer", "answer"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert told(tmp_path, "a.parquet") == ("a.parquet: 2 columns are named `answer`", "give each column its own name")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_blank_lines_above_the_names_of_columns_are_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n\r\nprompt;topic\nTea?;home\n\nKey?;hall\n")
    lines = list(read_lines(tmp_path / name))
    assert [line.data for line in lines] == [{"prompt": "Tea?", "topic": "home"}, {"prompt": "Key?", "topic": "hall"}]
    assert [line.place for line in lines] == [4, 6]


def test_blank_lines_may_have_spaces_and_stand_above_the_name_of_a_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("  \n\nprompt,topic\nTea?,home\n")
    (tmp_path / "b.csv").write_text("\nsep=;\nprompt;topic\nTea?;home\n")
    found = [[(line.place, line.data) for line in read_lines(tmp_path / name)] for name in ("a.csv", "b.csv")]
    assert found == [[(4, {"prompt": "Tea?", "topic": "home"})]] * 2


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("s3://bucket/a.jsonl", "bring the file here, and name its path"),
        ("https://example.org/a.jsonl", "bring the file here, and name its path"),
        ("s3://bucket/shards/*.jsonl", "bring the file here, and name its path"),
        ("hf://datasets/org/name/a.jsonl", "name the data set: `source: org/name`"),
        ("https://huggingface.co/datasets/org/name", "name the data set: `source: org/name`"),
    ],
)
def test_an_address_is_no_file(tmp_path: Path, source: str, hint: str) -> None:
    assert told(tmp_path, source) == (f"{source} is an address, not a file here", hint)


@pytest.mark.parametrize("name", ["messages", "conversations"])
@pytest.mark.parametrize("label", [{}, {"label": True}], ids=["plain", "labelled"])
def test_half_a_character_in_turns_that_are_written_out_makes_one_row_bad(
    tmp_path: Path, name: str, label: dict[str, bool]
) -> None:
    broken = [{"role": "user", "content": "\ud83d"}, TURNS[1]]
    write_jsonl(tmp_path / "a.jsonl", [{name: json.dumps(turns), **label} for turns in (broken, TURNS)])
    load = Load(LoadParams(source="a.jsonl", on_bad_row="quarantine"), StepContext(0, tmp_path))
    rows, _ = run_table(load, tmp_path / "out")
    assert [row["response"] for row in rows.pylist()] == ["Here."]
    assert [row["reason"] for row in rows.dropped().pylist()] == [r"a message has \ud83d, which is half of a character"]
