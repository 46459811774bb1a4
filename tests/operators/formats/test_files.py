"""Reading records: every kind of file gives the same records, and every break has a place."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.operator import StepContext
from caiflow.operators.formats.files import read_lines
from caiflow.operators.formats.opening import Line
from caiflow.operators.formats.rows import Parser
from caiflow.operators.formats.source import FileSource
from caiflow.operators.formats.survey import BadRow
from caiflow.operators.formats.tables import Csv
from caiflow.operators.load import Load, LoadParams

RECORDS = [{"prompt": f'ask {n}:\n"quoted", ünïcode 🦊', "note": "x" * n} for n in range(5)]


def read(path: Path) -> list[Line]:
    return list(read_lines(path))


def data(path: Path) -> list[object]:
    return [line.data for line in read(path)]


def write(path: Path) -> Path:
    name = path.name.removesuffix(".gz")
    plain = path.parent / f"plain-{name}"
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(RECORDS), plain)
    elif name.endswith((".csv", ".tsv")):
        with plain.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, RECORDS[0], delimiter="\t" if name.endswith(".tsv") else ",")
            rows.writeheader()
            rows.writerows(RECORDS)
    elif name.endswith(".json"):
        plain.write_text(json.dumps(RECORDS, indent=2))
    else:
        plain.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    path.write_bytes(gzip.compress(plain.read_bytes()) if path.suffix == ".gz" else plain.read_bytes())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_every_kind_gives_the_same_records(tmp_path: Path, name: str, gz: str) -> None:
    assert data(write(tmp_path / (name + gz))) == RECORDS


def test_content_goes_before_suffix_for_json(tmp_path: Path) -> None:
    lines, array = tmp_path / "a.json", tmp_path / "b.jsonl"
    lines.write_text('{"a": 1}\n{"a": 2}\n')
    array.write_text('\ufeff [{"a": 1},\n {"a": 2}]')
    assert data(lines) == data(array) == [{"a": 1}, {"a": 2}]


def test_objects_that_hold_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": [{"a": 1}, {"a": 2}]}, indent=1))
    assert data(path) == [{"a": 1}, {"a": 2}]
    path.write_text(json.dumps({"x": {"a": 1}, "y": {"a": 2}}, indent=1))
    assert data(path) == [{"key": "x", "a": 1}, {"key": "y", "a": 2}]
    path.write_text(json.dumps({"a": 1}, indent=1))
    assert data(path) == [{"a": 1}]


@pytest.mark.parametrize("turn", [{"role": "user", "content": "q"}, {"from": "human", "value": "q"}])
@pytest.mark.parametrize("more", [{}, {"id": "x"}, {"system": "s"}])
def test_one_conversation_is_one_record(tmp_path: Path, turn: dict[str, str], more: dict[str, str]) -> None:
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps({"messages": [turn, turn], **more}, indent=indent))
        assert data(path) == [{"messages": [turn, turn], **more}]


plain = st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text(), max_size=2))


@settings(deadline=None)
@given(st.sampled_from(["columns", "split", "records", "index"]), st.lists(st.tuples(plain, plain), min_size=1, max_size=4))
def test_what_pandas_writes_is_its_rows(orient: Any, rows: list[tuple[Any, Any]]) -> None:
    import pandas

    frame = pandas.DataFrame({"prompt": [row[0] for row in rows], "kind": [row[1] for row in rows]}, dtype=object)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(frame.to_json(orient=orient))
        found = [{name: line[name] for name in ("prompt", "kind")} for line in data(path)]  # type: ignore[index]
    assert found == [{"prompt": one, "kind": two} for one, two in rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.txt", "a.jsonl.gz"])
def test_a_git_lfs_pointer_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    with pytest.raises(ValueError, match=r"a Git LFS pointer, .*; fetch the file: `git lfs pull`"):
        read(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_another_separator_is_recognised(tmp_path: Path, name: str, separator: str) -> None:
    plain = tmp_path / "plain"
    with plain.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, RECORDS[0], delimiter=separator)
        rows.writeheader()
        rows.writerows([*RECORDS, {"prompt": "Tea, or; coffee|no\tthanks?", "note": ""}])
    packed = gzip.compress(plain.read_bytes()) if name.endswith(".gz") else plain.read_bytes()
    (tmp_path / name).write_bytes(packed)
    assert data(tmp_path / name) == [*RECORDS, {"prompt": "Tea, or; coffee|no\tthanks?", "note": ""}]


def test_texts_are_prompts(tmp_path: Path) -> None:
    texts = ["Where is the tea?", "[1, 2]", ' "quoted" ']
    for name, content in (
        ("a.json", json.dumps(texts)),
        ("a.jsonl", "\n".join(map(json.dumps, texts))),
        ("a.txt", "\ufeff" + "\r\n\n".join(texts) + "\n"),
    ):
        (tmp_path / name).write_bytes(content.encode())
        assert data(tmp_path / name) == [{"prompt": text} for text in texts]
    (tmp_path / "a.jsonl").write_text('"one"\n{"prompt": "two"}\n')
    assert read(tmp_path / "a.jsonl")[1].error == "expected a text, as the first is, got dict"


def test_bytes_are_text_where_they_are_some(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"prompt": [b"q", "ü".encode()], "n": [1, 2], "image": [b"x", b"\xff\xd8"]}), tmp_path / "a.parquet"
    )
    assert data(tmp_path / "a.parquet") == [
        {"prompt": "q", "n": 1, "image": "x"},
        {"prompt": "ü", "n": 2, "image": b"\xff\xd8"},
    ]
    good, bad = Parser().rows(FileSource(tmp_path / "a.parquet"))
    assert not isinstance(good, BadRow)
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith("`image`: it has bytes that aren't text")


def test_places_are_lines(tmp_path: Path) -> None:
    jsonl, array, table = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "a.csv"
    jsonl.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    array.write_text('[\n  {"a":\n 1},\n\n  {"a": 2}\n]')
    table.write_text('a,b\n1,"two\nlines"\n3,4\n')
    assert [line.place for line in read(jsonl)] == [2, 4]
    assert [line.place for line in read(array)] == [2, 5]
    assert [line.place for line in read(table)] == [2, 4]


def test_broken_lines_are_told_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \xff}\n[1]\n{"a": 2}\n')
    found = read(path)
    assert [line.data for line in found] == [{"a": 1}, None, None, {"a": 2}]
    assert found[1].error.startswith("not JSON: ")
    assert found[2].error == "expected an object with named fields, got list"


def test_columns_of_a_broken_line_are_counted_within_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "b"\r\n\xef\xbb\xbf{"a": 1,}\n{"a": x}')
    assert [(line.place, line.error.split(" at ")[-1], line.text) for line in read(path)] == [
        (1, "column 15", '{"prompt": "b"'),
        (2, "column 9", '\ufeff{"a": 1,}'),
        (3, "column 7", '{"a": x}'),
    ]


def test_rows_of_another_width_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3\n4,5\n")
    assert [(line.place, line.error) for line in read(path) if line.data is None] == [(3, "expected 2 cells, got 1")]


def test_items_longer_than_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records = [{"a": "x" * 3_000_000}, {"a": 1}, {"a": "y" * 1_500_000}]
    path.write_text(json.dumps(records))
    assert data(path) == records


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"a": 1},\n{"a": 2},\n{"a": ', r"a\.json:3: the array breaks off here"),
        ("a.json", b'{"a":\n 1,\n b}', r"a\.json:3: not JSON"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], r"a\.jsonl\.gz: can't be read"),
        ("a.jsonl.gz", b'{"a": 1}\n', r"a\.jsonl\.gz: can't be read"),
        ("a.parquet", b"PAR1 nothing", r"a\.parquet: not a parquet file"),
        ("a.json", b'[{"a": 1}, {"a": x}]', r"a\.json:1: the array breaks off here: Expecting value$"),
        ("a.csv", b'a\n"open', r"a\.csv:2: can't be read further"),
        ("a.csv", b'"open', r"a\.csv:1: can't be read further"),
        ("a.csv", b"\xff,b\n1,2", r"a\.csv:1: can't be read further"),
        ("a.csv", b"a,b,a\n1,2,3", r"a\.csv:1: 2 columns are named `a`; give each column its own name"),
        ("a.tsv", b"a\t\t\n1\t2\t3", r"a\.tsv:1: 2 columns have no name"),
        ("a.text", b"", r"a\.text: unknown kind of file, got suffix '\.text'"),
    ],
)
def test_files_that_break_as_a_whole(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_text("")
        assert read(tmp_path / name) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("packing", [".zst", ".zip"])
def test_packed_files_give_the_same_records(tmp_path: Path, name: str, packing: str) -> None:
    plain, packed = write(tmp_path / name), tmp_path / (name + packing)
    if packing == ".zst":
        half = len(plain.read_bytes()) // 2  # two frames, as what is compressed in parts has
        parts = (plain.read_bytes()[:half], plain.read_bytes()[half:])
        packed.write_bytes(b"".join(pa.compress(part, "zstd", asbytes=True) for part in parts))
    else:
        with zipfile.ZipFile(packed, "w") as file:
            file.write(plain, name)
    assert data(packed) == RECORDS


def test_a_zip_is_as_the_one_file_in_it(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    with zipfile.ZipFile(tmp_path / "whatever.zip", "w") as file:
        file.write(tmp_path / "a.jsonl", "inner/a.jsonl")
    assert data(tmp_path / "whatever.zip") == RECORDS
    with zipfile.ZipFile(tmp_path / "whatever.zip", "a") as file:
        file.write(tmp_path / "a.jsonl", "b.jsonl")
    with pytest.raises(ValueError, match=r"it has 2 files .*; unpack it, and name one of them"):
        read(tmp_path / "whatever.zip")
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"broken.zip: can't be read"):
        read(tmp_path / "broken.zip")


@pytest.mark.parametrize(
    ("text", "encoding", "how", "line"),
    [
        ("prompt\nWo ist der Löffel?\n", "latin1", Csv(encoding="latin1"), r"csv: \{encoding: latin1\}"),
        ("prompt\nWo ist der „Löffel“?\n", "cp1252", Csv(encoding="cp1252"), r"csv: \{encoding: cp1252\}"),
        ('prompt,b\n"He says \\"hi\\", twice",b\n', "utf-8", Csv(quote="backslash"), r"csv: \{quote: backslash\}"),
    ],
)
def test_a_table_written_otherwise_is_told_with_the_line_to_write(
    tmp_path: Path, text: str, encoding: str, how: Csv, line: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=line):
        read(path)
    (found,) = read_lines(path, how)
    assert found.data is not None
    assert found.data["prompt"] in ("Wo ist der Löffel?", "Wo ist der „Löffel“?", 'He says "hi", twice')


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "A.JSONL.GZ", "A.CSV"])
def test_files_as_windows_writes_them(tmp_path: Path, name: str, encoding: str) -> None:
    plain = write(tmp_path / name.lower().removesuffix(".gz")).read_bytes().decode()
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    told = (mark + plain.replace("\r\n", "\n").replace("\n", "\r\n")).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(told) if name.lower().endswith(".gz") else told)
    found = [{key: str(value).replace("\r\n", "\n") for key, value in dict(line).items()} for line in data(tmp_path / name)]  # type: ignore[call-overload]
    assert found == RECORDS


def test_plain_texts_as_windows_writes_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Wo ist 🦊?\r\n\r\nDort.\r\n".encode("utf-16"))
    assert data(tmp_path / "a.txt") == [{"prompt": "Wo ist 🦊?"}, {"prompt": "Dort."}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
def test_a_text_in_another_encoding_is_told(tmp_path: Path, name: str) -> None:
    text = "Löffel\n" if name == "a.txt" else '{"prompt": "Löffel"}\n'
    (tmp_path / name).write_bytes((f"[{text}]" if name == "a.json" else text).encode("cp1252"))
    (found,) = Load(LoadParams(source=name), StepContext(base_dir=tmp_path)).check()
    assert "UTF-8" in found.hint
    assert "utf-8" in found.message.lower()


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("head", ["sep={}\r\n", ""])
def test_a_sheet_as_excel_saves_it(tmp_path: Path, separator: str, head: str) -> None:
    path = tmp_path / "a.csv"
    lines = [('"prompt"', '"the note"'), ('"Tea, or; ""milk""|no?"', "x"), ("Wer?", "y")]
    path.write_bytes(("\ufeff" + head.format(separator) + "".join(f"{separator.join(line)}\r\n" for line in lines)).encode())
    found = read(path)
    assert [line.data for line in found] == [
        {"prompt": 'Tea, or; "milk"|no?', "the note": "x"},
        {"prompt": "Wer?", "the note": "y"},
    ]
    assert found[0].place == 2 + bool(head)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"prompt\nq\n", mtime=0), "a gzip file"),
        (pa.compress(b"prompt\nq\n", "zstd", asbytes=True), "a zstd file"),
        (b"PK\x03\x04....", "a zip file"),
        (b"PAR1....", "a parquet file"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (b"\xff\xd8\xff\xe0", "an image"),
        (b"%PDF-1.7", "a PDF"),
    ],
    ids=["gzip", "zstd", "zip", "parquet", "png", "jpeg", "pdf"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.csv.gz"])
def test_a_file_that_its_name_belies_is_told(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=f"{what}.*, by its first bytes"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("between", ["\n", "", "\r\n", ",\n"])
def test_objects_one_after_the_other_are_rows(tmp_path: Path, name: str, between: str) -> None:
    text = between.join(json.dumps(record, indent=2) for record in RECORDS)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert data(tmp_path / name) == RECORDS


def test_a_broken_line_leaves_the_lines_after_it(tmp_path: Path) -> None:
    for first in ("{", '{"a": 1', "{'a': 1}", '{"a": 1}{"a": 2}'):
        (tmp_path / "a.jsonl").write_text(first + '\n{"a": 3}\n')
        assert data(tmp_path / "a.jsonl") == [None, {"a": 3}]
    (tmp_path / "a.json").write_text('{"a":\n 1}\n{"a": 2} {"a"')
    with pytest.raises(ValueError, match=r"a\.json:3: it breaks off here"):
        read(tmp_path / "a.json")


@settings(deadline=None)
@given(st.sampled_from(["lists", "polars", "viewer", "table"]), st.lists(st.tuples(plain, plain), min_size=1, max_size=4))
def test_what_other_tools_write_is_its_rows(tool: str, rows: list[tuple[Any, Any]]) -> None:
    columns = {"prompt": [row[0] for row in rows], "kind": [row[1] for row in rows]}
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    written: dict[str, Any] = {
        "lists": columns,
        "polars": {"columns": [{"name": name, "datatype": "String", "values": values} for name, values in columns.items()]},
        "viewer": {"features": [{"name": "prompt"}], "rows": [{"row_idx": 0, "row": record} for record in records]},
        "table": {"schema": {"fields": [{"name": "prompt"}]}, "data": records},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(written[tool]))
        assert data(path) == records


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    "document",
    [
        {"messages": [{"role": "user", "content": "q"}, CALL, {"role": "tool", "content": "3"}]},
        {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
        {"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "function"}]},
        {"chosen": [{"role": "user", "content": "q"}], "rejected": [{"role": "user", "content": "q"}]},
        {"prompt": "q", "answers": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]},
        {"question_id": 81, "turns": ["q", "r"], "reference": ["a", "b"]},
        {"turns": ["q", "r"], "reference": ["a", "b"]},
        {"id": "x", "facts": [{"a": 1}], "spans": [{"b": 1}]},
    ],
)
def test_one_record_is_one_row(tmp_path: Path, document: dict[str, Any]) -> None:
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(document, indent=indent))
        assert data(tmp_path / "a.json") == [document]


def test_several_lists_of_rows_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": [{"prompt": "q"}], "test": [{"prompt": "r"}]}))
    with pytest.raises(ValueError, match=r"a\.json: 2 lists of rows \(train, test\)"):
        read(tmp_path / "a.json")


def test_a_table_has_the_separator_and_quotes_that_are_given(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b~c\n"x, y~z\n')
    assert [line.data for line in read_lines(path, Csv(separator="~", quote="none"))] == [{"a,b": '"x, y', "c": "z"}]
    with pytest.raises(ValueError, match="no encoding 'latin-one'"):
        Csv(encoding="latin-one")
