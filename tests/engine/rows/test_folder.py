"""Rows on disk: what goes in comes out, the same bytes however it was cut, bounded and readable by others."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caiflow.engine.rows.columns import ColumnType
from caiflow.engine.rows.folder import DROPPED, Rows, RowsWriter, arrow_type, column_type
from caiflow.engine.store.artifacts import content_manifest

TYPES: dict[str, ColumnType] = {
    "uid": "text",
    "prompt": "messages",
    "samples": "texts",
    "p_chosen": "number",
    "scores": "numbers",
    "round": "integer",
    "swapped": "flag",
    "pairs": "conversations",
    "extra": "json",
}


def turn(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def full_row(number: int) -> dict[str, Any]:
    odd = number % 3 == 1
    return {
        "uid": f"{number:020x}",
        "prompt": [turn(f"Q{number} é")],
        "samples": None if odd else [f"a{number}", ""],
        "p_chosen": None if odd else number / 7,
        "scores": [0.5, float(number)],
        "round": number,
        "swapped": odd,
        "pairs": [[turn("x")], []],
        "extra": None if odd else '{"n":1}',
    }


def written(folder: Path, rows: list[dict[str, Any]], columns: dict[str, ColumnType] | None = None) -> Rows:
    with RowsWriter(folder, columns) as writer:
        writer.write_rows(rows)
    return Rows(folder)


def test_every_declared_type_comes_back(tmp_path: Path) -> None:
    rows = [full_row(number) for number in range(10)]
    read = written(tmp_path, rows, TYPES)
    assert read.pylist() == rows
    assert read.columns == {**TYPES, "extra": "text"}  # JSON text is text to Arrow
    assert read.num_rows == 10


@pytest.mark.parametrize("kind", list(TYPES.values()))
def test_arrow_types_and_names_are_inverse(kind: ColumnType) -> None:
    assert column_type(arrow_type(kind)) == ("text" if kind == "json" else kind)


def test_others_read_it_without_caiflow(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    with RowsWriter(tmp_path / "step", TYPES) as writer:
        writer.write_rows([full_row(number) for number in range(5)])
        writer.drop([full_row(9)], "too long")
    (tmp_path / "step" / ".caiflow.json").write_text("{}")
    for how in ({"data_dir": str(tmp_path / "step")}, {"data_files": str(tmp_path / "step" / "*.parquet")}):
        loaded = datasets.load_dataset("parquet", split="train", cache_dir=str(tmp_path / "cache"), **how)
        assert loaded["uid"][:] == [full_row(number)["uid"] for number in range(5)]
        assert loaded[0]["prompt"] == full_row(0)["prompt"]
    assert pl.read_parquet(tmp_path / "step" / "*.parquet").to_dicts() == Rows(tmp_path / "step").pylist()


def wide_table(rows: int, seed: int = 1) -> pl.DataFrame:
    rng = random.Random(seed)
    texts = [None if rng.random() < 0.1 else "x" * rng.randint(0, 3000) for _ in range(rows)]
    return pl.DataFrame(
        {
            "uid": [f"{number:08d}" for number in range(rows)],
            "prompt": [[turn(text or "-")] for text in texts],
            "response": texts,
            "round": [number % 5 for number in range(rows)],
        }
    )


def whole(frame: pl.DataFrame, writer: RowsWriter) -> None:
    writer.write(frame)


def arrow_with_other_types(frame: pl.DataFrame, writer: RowsWriter) -> None:
    table = frame.to_arrow()
    table = table.set_column(3, "round", table.column("round").cast(pa.int16()))
    writer.write(table.set_column(0, "uid", table.column("uid").dictionary_encode()))


def lazily(frame: pl.DataFrame, writer: RowsWriter) -> None:
    writer.write(frame.lazy())


def in_random_cuts(frame: pl.DataFrame, writer: RowsWriter) -> None:
    rng, start = random.Random(2), 0
    while start < len(frame):
        size = rng.choice([1, 7, 1000, 1024, 5000])
        piece = frame.slice(start, size)
        if size == 7:
            writer.write_rows(piece.to_dicts())
        elif size == 1000:
            for batch in piece.to_arrow().to_batches(max_chunksize=333):
                writer.write(batch)
        else:
            writer.write(piece)
        start += size


@pytest.mark.parametrize("how", [arrow_with_other_types, lazily, in_random_cuts])
def test_equal_rows_are_equal_bytes_however_they_were_cut(
    tmp_path: Path, how: Callable[[pl.DataFrame, RowsWriter], None]
) -> None:
    frame = wide_table(90_000 if how is in_random_cuts else 40_000)
    for name, write in (("one", whole), ("other", how)):
        with RowsWriter(tmp_path / name) as writer:
            write(frame, writer)
    assert content_manifest(tmp_path / "one") == content_manifest(tmp_path / "other")
    assert len(Rows(tmp_path / "one").files) > 1
    assert Rows(tmp_path / "other").scan().collect().equals(frame)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"a": st.none() | st.text(), "b": st.none() | st.floats(allow_nan=False), "c": st.lists(st.text())}
        ),
        max_size=12,
    ),
    cuts=st.lists(st.integers(1, 5), min_size=1),
)
def test_small_tables_too(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], cuts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    columns: dict[str, ColumnType] = {"a": "text", "b": "number", "c": "texts"}
    read = written(folder / "one", rows, columns)
    with RowsWriter(folder / "other", columns) as writer:
        start = 0
        while start < len(rows):
            cut = cuts[start % len(cuts)]
            writer.write_rows(rows[start : start + cut])
            writer.write(pa.table({"a": pa.array([], pa.string())}))
            start += cut
    assert content_manifest(folder / "one") == content_manifest(folder / "other")
    assert read.pylist() == rows


def test_another_value_is_another_content(tmp_path: Path) -> None:
    frame = wide_table(3000)
    with RowsWriter(tmp_path / "one") as writer:
        writer.write(frame)
    with RowsWriter(tmp_path / "other") as writer:
        writer.write(frame.with_columns(round=pl.when(pl.col("uid") == "00002999").then(99).otherwise("round")))
    assert content_manifest(tmp_path / "one")["content"] != content_manifest(tmp_path / "other")["content"]


def test_row_groups_are_steady_and_bounded_by_size(tmp_path: Path) -> None:
    with RowsWriter(tmp_path / "short") as writer:
        writer.write(pl.DataFrame({"uid": [str(number) for number in range(70_000)]}))
    sizes = [group.num_rows for group in groups(tmp_path / "short")]
    assert sizes == [16384] * 4 + [70_000 - 4 * 16384]
    with RowsWriter(tmp_path / "long") as writer:
        for _ in range(4):
            writer.write(pl.DataFrame({"text": ["y" * 40_000] * 1024}))
    assert [group.num_rows for group in groups(tmp_path / "long")] == [1024] * 4


def groups(folder: Path) -> list[Any]:
    metadata = [pq.read_metadata(file) for file in Rows(folder).files]
    return [meta.row_group(number) for meta in metadata for number in range(meta.num_row_groups)]


def test_no_rows_still_have_columns(tmp_path: Path) -> None:
    read = written(tmp_path, [], TYPES)
    assert read.num_rows == 0
    assert list(read.columns) == list(TYPES)
    assert read.pylist() == []
    assert list(read.batches()) == []
    assert read.scan().collect().columns == list(TYPES)
    assert Rows(tmp_path / "absent").columns == {}


def test_dropped_rows_are_beside_with_their_reasons_and_do_not_count(tmp_path: Path) -> None:
    kept = [full_row(number) for number in range(3)]
    one = written(tmp_path / "one", kept, TYPES)
    with RowsWriter(tmp_path / "other", TYPES) as writer:
        writer.write_rows(kept)
        writer.drop([full_row(7)], "unchanged")
        writer.drop(pl.DataFrame({"uid": ["8", "9"]}), pl.Series(["few_shot_leak", "length"]))
        writer.drop(pa.table({"uid": ["10"], "place": ["x.jsonl:3"]}), ["broken"])
        assert (writer.num_rows, writer.num_dropped) == (3, 4)
    other = Rows(tmp_path / "other")
    dropped = other.dropped().pylist()
    assert [row["reason"] for row in dropped] == ["unchanged", "few_shot_leak", "length", "broken"]
    assert dropped[0]["prompt"] == full_row(7)["prompt"]
    assert dropped[3]["place"] == "x.jsonl:3"
    assert other.pylist() == one.pylist()
    assert one.dropped().num_rows == 0
    contents = [content_manifest(tmp_path / name) for name in ("one", "other")]
    assert contents[0]["content"] == contents[1]["content"]
    assert f"{DROPPED}/part-00000.parquet" in contents[1]["files"]


def test_a_column_named_reason_is_kept_beside_the_reason_of_the_drop(tmp_path: Path) -> None:
    types: dict[str, ColumnType | None] = {"reason": "integer", "row_reason": "text"}
    with RowsWriter(tmp_path / "one", types) as one:
        one.drop([{"reason": 7, "row_reason": "x"}], "length")
        one.drop(pa.table({"reason": [8], "row_reason": ["y"]}), ["broken"])
    dropped = Rows(tmp_path / "one").dropped()
    assert dropped.pylist() == [
        {"row_reason": 7, "row_row_reason": "x", "reason": "length"},
        {"row_reason": 8, "row_row_reason": "y", "reason": "broken"},
    ]
    with RowsWriter(tmp_path / "joined", types) as joined:
        for batch in dropped.batches():
            joined.append_dropped(batch)
    assert Rows(tmp_path / "joined").dropped().pylist() == dropped.pylist()


@pytest.mark.parametrize(
    ("offset", "limit"), [(0, None), (0, 3), (16_380, 10), (69_998, 10), (70_000, 1), (99_999, None), (5, 0)]
)
def test_paging_reads_what_a_slice_would(tmp_path: Path, offset: int, limit: int | None) -> None:
    with RowsWriter(tmp_path) as writer:
        writer.write(pl.DataFrame({"n": range(70_000)}))
    end = None if limit is None else offset + limit
    assert [row["n"] for row in Rows(tmp_path).pylist(offset, limit)] == list(range(70_000))[offset:end]


def test_batches_come_in_order_and_bounded(tmp_path: Path) -> None:
    with RowsWriter(tmp_path) as writer:
        writer.write(wide_table(20_000))
    batches = list(Rows(tmp_path).batches(999, columns=["uid"]))
    assert max(map(len, batches)) <= 999
    assert [uid for batch in batches for uid in batch.column("uid").to_pylist()] == [f"{n:08d}" for n in range(20_000)]


def test_types_settle_over_the_first_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"uid": "1", "note": None, "score": 1}] * 1500 + [
        {"uid": "2", "note": "late", "score": 0.5, "new": True}
    ]
    read = written(tmp_path, rows)
    assert read.columns == {"uid": "text", "note": "text", "score": "number", "new": "flag"}
    assert read.pylist(1499)[0] == {"uid": "1", "note": None, "score": 1.0, "new": None}


def test_json_columns_take_any_value(tmp_path: Path) -> None:
    values = [{"b": 1, "a": "é"}, [1, None], "already", None]
    read = written(tmp_path, [{"extra": value} for value in values], {"extra": "json"})
    assert [row["extra"] for row in read.pylist()] == ['{"b":1,"a":"é"}', "[1,null]", "already", None]


def test_a_wrong_value_names_the_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="column p_chosen"):
        written(tmp_path / "one", [{"p_chosen": "high"}], {"p_chosen": "number"})
    first = pl.DataFrame({"response": ["a"] * 20_000})
    for second, message in (({"response": [[1]]}, "column response"), ({"response": ["a"], "new": [1]}, "columns appear")):
        with RowsWriter(tmp_path / message) as writer:
            writer.write(first)
            with pytest.raises(ValueError, match=message):
                writer.write(pl.DataFrame(second))


def test_memory_stays_bounded_while_a_large_table_streams(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from caiflow.engine.rows.folder import RowsWriter
block = pa.table({"text": [f"{i} " + "abcdefgh" * 125 for i in range(8192)]})
with RowsWriter(Path(sys.argv[1])) as writer:
    writer.write(block)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(120):
        writer.write(block)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""
    printed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert float(printed) < 700  # of 980 MB written


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_what_threads_have_freed_goes_back_to_the_system() -> None:
    code = """
import threading
import caiflow.engine.rows.folder
import pyarrow as pa
def held_mb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) >> 10
freed = threading.Barrier(5)
def work():
    held = [pa.array(["x" * 1000] * 1000) for _ in range(64)]
    held.clear()
    freed.wait()
    freed.wait()
before = held_mb()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
freed.wait()
print(held_mb() - before)
freed.wait()
"""
    environment = {name: value for name, value in os.environ.items() if name != "MIMALLOC_PURGE_DELAY"}  # set here by now
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert int(printed) < 150, "of 250 MB"
