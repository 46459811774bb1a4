"""What is read at the speed of compiled code is, bit by bit, what is read with care: any records, and real files."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.identity import quick_json, quick_record, quick_records
from caiflow.operators.formats.plain.prompts import quick_prompts
from caiflow.operators.formats.plain.seen import Seen
from caiflow.operators.formats.plain.transcripts import quick_pairs
from caiflow.operators.formats.plain.written import _encode
from caiflow.operators.formats.rows import Parser
from caiflow.operators.formats.shapes import arrow_type, fit, merge, shape_of
from caiflow.operators.formats.source import FileSource
from caiflow.operators.formats.survey import BadRow, ByColumn, Conversations, Survey, by_column
from support.real_data import REAL_DATA, needs

_leaf = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
_anything = st.recursive(
    _leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
_texts = st.lists(
    st.sampled_from(
        ("\n\nHuman:", "\n\nAssistant:", "\n\n", "\n", " ", "a", "Human:", "System:", "\r", "\0", "\u2028", "\x1c")
    ),
    max_size=9,
).map("".join)
_openings = st.sampled_from(("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b\n\nHuman:", ""))
NUMBERS = (
    "-0", "-0.0", "1e2", "1E400", "18446744073709551615", "18446744073709551616", "-9223372036854775809", "1e15", "1e16",
    "0.0001", "0.00001", "1e-7", "123456789012345.6", "0.1", "1.0", "NaN", "-Infinity", "01", "+1", ".5", "5.",
)  # fmt: skip
LINES = (
    '{"a": "\\ud83d"}', '{"a": "\\ud83d\\ude00"}', '{"a": 1, "a": 2}', '{"b": 1, "a": 2, "b": 3}', '{"a": "\t"}',
    '{"a": "\x7f"}', '{"a": "\\u0000"}', '{"a": "\\/"}', '{"a": "\\x"}', "\ufeff{}", "{}", "[]", '"a"', "null",
    '{"a": 1} x', '{"a": 1}\r',
    "[" * 2000, '{"a": ' + "[" * 900 + "]" * 900 + "}", "{'a': 1}", '{"a": 1,}', '{"a": tru}', "",
)  # fmt: skip


def same(left: Any, right: Any) -> bool:
    return repr(left) == repr(right)  # the order of fields, -0.0 and the kind of each number too


@pytest.mark.parametrize("text", [*LINES, *(f'{{"x": {number}}}' for number in NUMBERS)])
def test_a_line_is_read_quickly_only_where_python_reads_the_same(text: str) -> None:
    found = quick_record(text.encode("utf-8", "surrogatepass"))
    assert found is None or same(found, json.loads(text))
    assert (written := quick_json(found)) if found else True
    assert not found or written == _encode(found).encode()


def test_every_character_is_written_and_read_alike() -> None:
    every = {"all": "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))}
    assert quick_json(every) == _encode(every).encode()
    assert quick_record(json.dumps(every).encode()) == quick_record(_encode(every).encode()) == every


@given(st.dictionaries(st.text(max_size=3), _anything, max_size=4))
def test_json_is_written_and_read_quickly_only_where_it_is_the_same(record: dict[str, Any]) -> None:
    written = _encode(record)
    assert quick_json(record) in (None, written.encode("utf-8", "surrogatepass"))
    found = quick_record(written.encode("utf-8", "surrogatepass"))
    assert found is None or same(found, json.loads(written))


@given(st.floats(min_value=1e-4, max_value=1e15, exclude_max=True), st.booleans())
def test_numbers_of_usual_sizes_are_written_quickly(number: float, negative: bool) -> None:
    record = {"x": -number if negative else number}
    assert quick_json(record) == _encode(record).encode()


def in_order(batches: list[ByColumn]) -> list[Any]:
    """Return the rows of batches with the bad ones among them, as `Parser.rows` yields them."""
    found: list[Any] = []
    for batch in batches:
        columns = {name: _values(values) for name, values in batch.columns.items()}
        rows: list[Any] = [{name: values[place] for name, values in columns.items()} for place in range(batch.num_rows)]
        for lost, (place, bad) in enumerate(batch.bad):
            rows.insert(place + lost, bad)
        found += rows
    return found


def _values(values: list[Any] | Conversations) -> list[Any]:
    return values.array().to_pylist() if isinstance(values, Conversations) else values


def agree(path: Path, size: int) -> None:
    """Assert that batches are the rows, but for the fields of rows that lack what others have, which are null there."""
    rows, batches = list(Parser().rows(FileSource(path))), list(Parser().batches(FileSource(path), size))
    names = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
    assert [*dict.fromkeys(name for batch in batches if batch.num_rows for name in batch.columns)] == [*names]
    for row, found in zip(rows, in_order(batches), strict=True):
        if isinstance(row, BadRow):
            assert found == row
        else:
            assert {name: value for name, value in found.items() if value is not None or name in row} == row


NAMES = ("hh_harmless_200.jsonl", "hhh_40.jsonl", "released_chains_half.jsonl", "xstest_prompts.csv")
FILES = [REAL_DATA / name for name in NAMES]


@needs(*FILES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_files_are_the_same_row_by_row_and_by_column(path: Path) -> None:
    for size in (1, 70, 1024):
        agree(path, size)


@needs(FILES[0])
def test_nearly_all_real_pairs_are_read_at_once() -> None:
    lines = FILES[0].read_text().splitlines()
    _, others = quick_pairs([json.loads(line) for line in lines], str)
    assert len(others) <= 2


_pair = st.builds(
    lambda opening, one, other: {"chosen": opening + "\n\nAssistant:" + one, "rejected": opening + "\n\nAssistant:" + other},
    _openings, _texts, _texts,
)  # fmt: skip
_odd = st.fixed_dictionaries(
    {"chosen": _texts | st.none(), "rejected": _texts | st.integers()},
    optional={"n": st.integers(), "prompt": _texts, "messages": st.just([{"role": "user", "content": "a"}])},
)


_between = st.sampled_from(["\n", "\n{broken\n", '\n{"chosen": "\\ud83d", "rejected": "a"}\n'])


@settings(max_examples=50)
@given(st.lists(_pair | _pair | _odd | _pair.map(lambda pair: {**pair, "n": 1}), max_size=8), _between)
def test_any_pairs_are_the_same_row_by_row_and_by_column(records: list[dict[str, Any]], between: str) -> None:
    whole = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    lines = [json.dumps(record) for record in [whole] * 9 + records + records[:2]]  # so that they are taken for pairs
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        path.write_text("\n".join(lines) + between + "\n".join(lines[9:]))
        agree(path, 5)


_asked = st.none() | st.sampled_from(("a", " b ", "", "[1]", ' [{"role": "user", "content": "a"}]', "Human: a", "\ud83d"))
_prompt = st.fixed_dictionaries(
    {"prompt": _asked},
    optional={
        "completion": st.sampled_from(("c", "", "[2]")) | st.none(), "system": st.sampled_from(("s", " ")),
        "input": st.sampled_from(("i", "")), "label": st.booleans(), "chosen": _texts, "n": _leaf,
    },
)  # fmt: skip
_alike = st.fixed_dictionaries({"prompt": st.sampled_from(("a", "b ", "\n"))}, optional={"completion": st.just("c")})


@settings(max_examples=50)
@given(st.lists(_alike, max_size=6), st.lists(_alike | _prompt, max_size=6))
def test_any_prompts_are_the_same_row_by_row_and_by_column(first: list[dict[str, Any]], then: list[dict[str, Any]]) -> None:
    records = [{"prompt": "q", "k": 1.5}] * 21 + first * 12 + then  # so that they are taken for prompts
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        for size in (2, 100):
            agree(path, size)


def test_prompts_alike_are_read_at_once() -> None:
    records = [{"prompt": f"q {place}", "completion": "a", "n": place} for place in range(70)]
    found = quick_prompts(records, lambda texts: [text.decode() for text in texts])
    assert found is not None
    assert found.num_rows == 70
    assert found.columns["response"] == ["a"] * 70
    assert found.columns["uid"][1] == '{"completion":"a","n":1,"prompt":"q 1"}'  # type: ignore[index]


HALVES = ('{"a":[{"x":1}', '{"y":2}]}', '{"a":1},{"b":2}', '{"b":2}', '{"a":[1', '2]},{"b":1}', "", '{"a":1e400}', "7")


@given(st.lists(st.sampled_from(HALVES), min_size=1, max_size=4))
def test_lines_are_read_at_once_only_where_each_is_whole(lines: list[str]) -> None:
    raws = [f"{line}\n".encode() for line in lines]
    found, each = quick_records(raws), [quick_record(raw) for raw in raws]
    assert found == (None if None in each else each)


_rows = st.lists(st.fixed_dictionaries({}, optional={"a": _anything, "b": _anything}), max_size=4)


@settings(max_examples=50)
@given(st.lists(_rows, min_size=1, max_size=4))
def test_blocks_become_what_their_rows_would_one_by_one(blocks: list[list[dict[str, Any]]]) -> None:
    survey = Survey()
    kept = [survey.see(by_column([{"uid": "u", **row} for row in block])) for block in blocks]
    for name, shape in survey.shapes.items():
        values = [[row.get(name, "u" if name == "uid" else None) for row in block] for block in blocks]
        given_shapes = [shape_of(row[name]) for block in blocks for row in block if name in row]
        assert name == "uid" or shape == reduce(merge, given_shapes, "null")
        for block, some in zip(kept, values, strict=True):
            wanted = pa.array([fit(value, shape) for value in some], arrow_type(shape)).to_pylist()
            assert repr(block.fitted(name, shape).to_pylist()) == repr(wanted)


@given(st.lists(st.binary(min_size=4, max_size=4) | st.sampled_from([b"aaaa", b"aabb", b"aaab", b"aaba"])))
def test_digests_are_new_once(digests: list[bytes]) -> None:
    seen, half = Seen(), len(digests) // 2
    again = [*seen.add(digests[:half]), *(half + place for place in seen.add(digests[half:]))]
    assert again == [place for place, digest in enumerate(digests) if digest in digests[:place]]
