"""`load`: uids, choices among rows, bad rows, and what is known before anything is read."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.operator import StepContext
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows
from caiflow.operators.formats.params import LoadParams, Split
from caiflow.operators.formats.passes import side
from caiflow.operators.formats.tables import read_parquet
from caiflow.operators.load import Load
from support.real_data import REAL_DATA, needs
from support.tables import ask, run_table, write_jsonl

DIALOGUES, HHH = REAL_DATA / "hh_harmless_200.jsonl", REAL_DATA / "hhh_40.jsonl"


def step(base_dir: Path, source: str, seed: int = 0, **fields: Any) -> Load:
    return Load(LoadParams(source=source, **fields), StepContext(seed, base_dir))


def load(base_dir: Path, source: str, seed: int = 0, **fields: Any) -> list[Row]:
    return loaded(base_dir, source, seed, **fields)[0].pylist()


def loaded(base_dir: Path, source: str, seed: int = 0, **fields: Any) -> tuple[Rows, dict[str, Any]]:
    return run_table(step(base_dir, source, seed, **fields), base_dir / f"out{len(list(base_dir.glob('out*')))}")


def uids(rows: list[Row]) -> list[str]:
    return [row["uid"] for row in rows]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"question {n % 40}", "n": n} for n in range(200)])
    return tmp_path


def test_uids_follow_content_and_outlive_growth_and_order_of_choice(prompts: Path) -> None:
    every = load(prompts, "prompts.jsonl")
    assert len(set(uids(every))) == 200
    assert uids(load(prompts, "prompts.jsonl", limit=7)) == uids(every)[:7]
    drawn = load(prompts, "prompts.jsonl", sample=20)
    assert set(uids(drawn)) <= set(uids(every))
    lines = (prompts / "prompts.jsonl").read_text()
    (prompts / "prompts.jsonl").write_text('{"prompt": "new", "n": -1}\n' + lines)
    assert uids(load(prompts, "prompts.jsonl"))[1:] == uids(every)


def test_a_file_that_is_renamed_moved_compressed_or_cut_in_two_keeps_its_rows(prompts: Path) -> None:
    lines = (prompts / "prompts.jsonl").read_bytes()
    (prompts / "elsewhere").mkdir()
    (prompts / "elsewhere" / "other.jsonl").write_bytes(lines)
    (prompts / "prompts.jsonl.gz").write_bytes(gzip.compress(lines))
    for name, part in (("a", lines.splitlines(keepends=True)[:90]), ("b", lines.splitlines(keepends=True)[90:])):
        (prompts / f"part_{name}.jsonl").write_bytes(b"".join(part))
    before = load(prompts, "prompts.jsonl")
    for source in ("elsewhere/other.jsonl", "prompts.jsonl.gz", "part_*.jsonl"):
        assert load(prompts, source) == before
    assert step(prompts, "prompts.jsonl").identity() == step(prompts, "elsewhere/other.jsonl").identity()
    assert uids(load(prompts, "prompts.jsonl", sample=9)) == uids(load(prompts, "prompts.jsonl.gz", sample=9))


def test_equal_rows_stay_several_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "same.jsonl", [{"prompt": "why?"}] * 3)
    rows = load(tmp_path, "same.jsonl")
    assert len(set(uids(rows))) == 3
    assert uids(load(tmp_path, "same.jsonl", limit=2)) == uids(rows)[:2]


def test_uid_field_names_the_rows_and_must_be_unique(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "ids.jsonl", [{"prompt": "a", "id": 4}, {"prompt": "b", "id": 5}, {"prompt": "c", "id": 4}])
    with pytest.raises(ValueError, match=r"ids\.jsonl:3: `id` '4' identifies another row already"):
        load(tmp_path, "ids.jsonl", uid="id")
    rows, metrics = loaded(tmp_path, "ids.jsonl", uid="id", on_bad_row="quarantine")
    assert uids(rows.pylist()) == ["4", "5"]
    assert metrics == {**metrics, "rows": 2, "bad_rows": 1}


def test_sample_hangs_on_the_seed_and_keeps_order(prompts: Path) -> None:
    first, again, other = (load(prompts, "prompts.jsonl", seed, sample=30) for seed in (1, 1, 2))
    assert uids(first) == uids(again) != uids(other)
    assert [row["n"] for row in first] == sorted(row["n"] for row in first)
    assert len(first) == 30
    assert set(uids(load(prompts, "prompts.jsonl", 1, sample=10))) < set(uids(first))
    assert max(row["n"] for row in first) > 100, "a sample isn't the head"


def test_sample_of_more_than_there_is_takes_all(prompts: Path) -> None:
    assert len(load(prompts, "prompts.jsonl", sample=1000)) == 200


def test_large_files_are_read_again_not_kept(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "many.jsonl", [{"prompt": f"q{n}", "score": n if n < 20_500 else n / 2} for n in range(21_000)])
    rows = load(tmp_path, "many.jsonl")
    assert [row["score"] for row in rows] == [float(n) if n < 20_500 else n / 2 for n in range(21_000)]
    assert len(load(tmp_path, "many.jsonl", sample=50)) == 50


def test_split_sides_share_no_prompt_and_miss_no_row(prompts: Path) -> None:
    train, test = (load(prompts, "prompts.jsonl", split={"test": 0.3, "part": part}) for part in ("train", "test"))
    assert sorted(uids(train) + uids(test)) == sorted(uids(load(prompts, "prompts.jsonl")))
    assert not {str(row["prompt"]) for row in train} & {str(row["prompt"]) for row in test}
    assert train
    assert test


@given(st.text(min_size=1), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_prompt_is_on_one_side_however_it_is_written(text: str, share: float, seed: int) -> None:
    split = Split(test=share, part="train", seed=seed)
    spaced = {"prompt": ask(f"  {text}\n"), "n": 2}
    assert side({"prompt": ask(text), "n": 1}, split) == side(spaced, split)
    opening = Split(test=share, part="test", by="opening", seed=seed)
    longer = [*ask(text), {"role": "assistant", "content": "yes"}, *ask("and then?")]
    assert side({"prompt": ask(text)}, opening) == side({"prompt": longer}, opening)


@given(st.floats(0.05, 0.95))
def test_a_growing_share_moves_prompts_one_way(share: float) -> None:
    rows = [{"prompt": ask(f"q{n}")} for n in range(50)]
    small = [side(row, Split(test=share / 2, part="train")) == "test" for row in rows]
    large = [side(row, Split(test=share, part="train")) == "test" for row in rows]
    assert all(later for earlier, later in zip(small, large, strict=True) if earlier)


def test_split_share_is_met_on_average() -> None:
    rows = [{"prompt": ask(f"q{n}")} for n in range(5000)]
    held = sum(side(row, Split(test=0.1, part="test")) == "test" for row in rows)
    assert 400 < held < 600


def test_split_by_a_column_the_row_lacks_says_so(prompts: Path) -> None:
    with pytest.raises(ValueError, match="split by `topic`: the row has none; it has uid, prompt, n"):
        load(prompts, "prompts.jsonl", split={"test": 0.3, "part": "test", "by": "topic"})


def test_a_bad_row_fails_with_file_and_line_or_is_kept_beside(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"\n{"prompt": 7}\n{"prompt": "c"}\n')
    with pytest.raises(ValueError, match=r"some\.jsonl:3: not JSON: .*; mend it, or set `on_bad_row: quarantine`"):
        load(tmp_path, "some.jsonl")
    rows, metrics = loaded(tmp_path, "some.jsonl", on_bad_row="quarantine")
    assert [row["prompt"] for row in rows.pylist()] == [ask("a"), ask("c")]
    assert metrics == {**metrics, "rows": 2, "bad_rows": 2}
    bad = rows.dropped().pylist()
    assert [Path(row["place"]).name for row in bad] == ["some.jsonl:3", "some.jsonl:4"]
    assert bad[0]["text"] == '{"prompt": "b"'
    assert bad[1]["reason"] == "`prompt` must be a text or a list of messages, got 7"


@pytest.mark.parametrize("uid", [None, "id"])
def test_half_a_character_makes_a_row_bad_wherever_it_is(tmp_path: Path, uid: str | None) -> None:
    bad = [r'"prompt": "x \ud83d y"', r'"prompt": "a", "n": {"\udc00": 1}', r'"prompt": "a", "\ud83d": 1']
    bad.append(r'"prompt": "[{\"role\": \"user\", \"content\": \"\\ud83d\"}]"')
    lines = [f'{{"id": {number}, {fields}}}' for number, fields in enumerate([r'"prompt": "\ud83d\ude00"', *bad], 1)]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    (tmp_path / "some.json").write_text(f"[{','.join(lines)}]")
    with pytest.raises(ValueError, match=r"some\.jsonl:2: `prompt` has \\ud83d, which is half of a character, got .*; mend it"):
        load(tmp_path, "some.jsonl", uid=uid)
    for name in ("some.jsonl", "some.json"):
        rows, metrics = loaded(tmp_path, name, uid=uid, on_bad_row="quarantine")
        assert rows.pylist()[0]["prompt"] == ask("😀")
        assert metrics == {**metrics, "rows": 1, "bad_rows": 4}
        found = rows.dropped().pylist()
        assert json.loads(found[0]["text"]) == {"id": 2, "prompt": "x \ud83d y"}
        assert [row["reason"].split(",")[0] for row in found] == [
            r"`prompt` has \ud83d",
            r"`n` has \udc00",
            r"`\ud83d` has \ud83d",
            r"a message has \ud83d",
        ]


def test_limit_counts_good_rows_and_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\nbroken\n')
    assert len(load(tmp_path, "some.jsonl", limit=2)) == 2


def test_no_row_left_is_an_error(prompts: Path) -> None:
    write_jsonl(prompts / "one.jsonl", [{"prompt": "a"}])
    empty = "train" if side({"prompt": ask("a")}, Split(test=0.5, part="test")) == "test" else "test"
    with pytest.raises(ValueError, match="no row to load"):
        load(prompts, "one.jsonl", split={"test": 0.5, "part": empty})


def test_source_columns_are_kept_by_type(tmp_path: Path) -> None:
    records = [
        {"prompt": "a", "tags": ["x"], "meta": {"k": 1}, "mixed": 1, "empty": {}, "uid": "theirs", "response": ["no text"]},
        {"prompt": "b", "tags": None, "meta": {"k": 2.5, "l": "z"}, "mixed": "one", "empty": {}, "uid": "more", "response": []},
    ]
    write_jsonl(tmp_path / "some.jsonl", records)
    first, second = load(tmp_path, "some.jsonl")
    assert (first["tags"], second["tags"]) == (["x"], None)
    assert (first["meta"], second["meta"]) == ({"k": 1.0, "l": None}, {"k": 2.5, "l": "z"})
    assert (first["mixed"], second["mixed"]) == ("1", "one")
    assert first["empty"] == "{}"
    assert first["source_uid"] == "theirs"
    assert first["source_response"] == ["no text"]


def test_a_table_keeps_what_has_only_the_name_of_a_caiflow_column_apart(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "some.jsonl", [{"prompt": "a", "response": "b", "messages": ask("c"), "n": 1}])
    (row,) = load(tmp_path, "some.jsonl", format="table")
    assert {name: row[name] for name in row if name != "uid"} == {
        "source_prompt": "a",
        "response": "b",
        "messages": ask("c"),
        "n": 1,
    }


def test_one_odd_value_leaves_the_other_texts_of_a_column_as_they_are(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "some.jsonl", [{"prompt": "a", "topic": topic} for topic in ("home", 5, True, None)])
    assert [row["topic"] for row in load(tmp_path, "some.jsonl")] == ["home", "5", "true", None]
    assert step(tmp_path, "some.jsonl").columns({}).types["topic"] == "text"


def test_numbers_too_long_for_a_column_of_numbers_are_seen_before_the_run(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "some.jsonl", [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2**63}])
    assert step(tmp_path, "some.jsonl").columns({}).types["n"] == "text"
    assert [row["n"] for row in load(tmp_path, "some.jsonl")] == ["1", str(2**63)]


def test_rename_leads_to_a_format(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qa.jsonl", [{"question": "why?", "answer": "so"}])
    (row,) = load(tmp_path, "qa.jsonl", rename={"question": "prompt", "answer": "completion"})
    assert (row["prompt"], row["response"]) == (ask("why?"), "so")


def test_rename_replaces_no_field_that_is_there(tmp_path: Path) -> None:
    records = [{"prompt": "a", "extra": "x"}, {"prompt": "b", "extra": "y", "note": "z"}]
    write_jsonl(tmp_path / "some.jsonl", records)
    rows, metrics = loaded(tmp_path, "some.jsonl", rename={"extra": "note"}, on_bad_row="quarantine")
    assert metrics == {**metrics, "rows": 1, "bad_rows": 1}
    (bad,) = rows.dropped().pylist()
    assert bad["reason"] == "`rename` puts `extra` into `note`, which the record has already"
    assert json.loads(bad["text"]) == records[1]
    (found,) = step(tmp_path, "some.jsonl", rename={"extra": "note"}).check()
    assert found[0] == ("rename", "extra")
    assert "some.jsonl:2 (1 of the 2 records can't be read): `rename` puts" in found[1]
    assert not list(step(tmp_path, "some.jsonl", rename={"extra": "note"}, on_bad_row="quarantine").check())
    (found,) = step(tmp_path, "some.jsonl", rename={"extra": "prompt"}).check()
    assert found == (
        ("rename", "extra"),
        "no row of some.jsonl can be loaded: `rename` puts `extra` into `prompt`, which the record has already",
        "give it a name that no other field has",
    )
    swapped = load(tmp_path, "some.jsonl", rename={"extra": "prompt", "prompt": "extra"}, limit=1)
    assert (swapped[0]["prompt"], swapped[0]["extra"]) == (ask("x"), "a")
    (found, *_) = step(tmp_path, "some.jsonl", rename={"prompt": "text", "extra": "text"}).check()
    assert found[0] == ("rename", "extra")


def test_names_that_no_record_has_are_told_before_the_run(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", [{"question": "a", "topic": "t"}] * 50)
    write_jsonl(tmp_path / "two.jsonl", [{"prompt": "a", "topic": "t"}])
    fields = {"rename": {"qestion": "prompt"}, "format": "prompt"}
    told = "no record of one.jsonl has `qestion`"
    assert list(step(tmp_path, "one.jsonl", **fields).check()) == [(("rename", "qestion"), told, "did you mean `question`?")]
    assert not list(step(tmp_path, "*.jsonl", rename={"other": "x"}).check()), "another file of the pattern may have it"

    split = {"test": 0.5, "part": "test"}
    nope = step(tmp_path, "two.jsonl", rename={"nope": "x"}, split={**split, "by": "topics"})
    assert list(nope.check()) == [
        (("rename", "nope"), "no record of two.jsonl has `nope`", "fields: prompt, topic"),
        (("split", "by"), "no column `topics` to split by", "did you mean `topic`?"),
    ]
    (found,) = step(tmp_path, "one.jsonl", split={**split, "by": "opening"}).check()
    assert found == (("split", "by"), "no column `prompt` to split by", "columns: uid, question, topic")
    assert not list(step(tmp_path, "two.jsonl", split={**split, "by": "topic"}).check())
    assert not list(step(tmp_path, "two.jsonl", split=split).check())


def test_a_uid_that_no_record_has_is_told_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('broken\n{"prompt": "a", "key": 1}\n')
    (found,) = step(tmp_path, "some.jsonl", uid="nope", rename={"key": "id"}).check()
    assert found == (("uid",), "no row of some.jsonl can be loaded: no `nope` to identify the row by", "fields: prompt, id")
    assert [path for path, *_ in step(tmp_path, "some.jsonl", uid="keys").check()] == [("uid",)]
    assert not list(step(tmp_path, "some.jsonl", uid="id", rename={"key": "id"}, on_bad_row="quarantine").check())


def test_a_pattern_loads_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    assert [row["prompt"] for row in load(tmp_path, "*.jsonl")] == [ask("a"), ask("b")]
    assert set(step(tmp_path, "*.jsonl").sources()) == {"source.0", "source.1"}


def test_bundled_data_loads_by_name(tmp_path: Path) -> None:
    row = load(tmp_path, "tiny:red_team_train.jsonl", limit=1)[0]
    assert row["prompt"][-1]["role"] == "user"
    (found,) = step(tmp_path, "tiny:nope.jsonl").check()
    assert found[:2] == (("source",), "no bundled file `nope.jsonl`")
    (found,) = step(tmp_path, "tiny:red_team_trian.jsonl").check()
    assert "red_team_train.jsonl" in found[2]


def test_columns_are_known_before_the_run(prompts: Path) -> None:
    columns = step(prompts, "prompts.jsonl").columns({})
    assert dict(columns.types) == {"uid": "text", "prompt": "messages", "n": "integer"}
    assert not columns.open
    write_jsonl(prompts / "few.jsonl", [{"prompt": "a", "n": 1, "l": ["x"]}])
    assert dict(step(prompts, "few.jsonl").columns({}).types) == {
        "uid": "text",
        "prompt": "messages",
        "n": "integer",
        "l": "texts",
    }
    assert step(prompts, "missing.jsonl").columns({}).open
    assert step(prompts, "org/name").columns({}).open


def test_check_tells_of_formats_that_do_not_fit_and_fields_without_effect(prompts: Path) -> None:
    (found,) = step(prompts, "prompts.jsonl", format="hh").check()
    assert found[0] == ("format",)
    assert found[1] == "no row of prompts.jsonl reads as hh: no `chosen`; it has `prompt`, `n`"
    assert [path for path, *_ in step(prompts, "prompts.jsonl", revision="main").check()] == [("revision",)]
    assert not list(step(prompts, "prompts.jsonl").check())


@pytest.mark.parametrize(("name", "text"), [("e.jsonl", ""), ("e.jsonl", "\n\n"), ("e.json", "[]"), ("e.csv", "prompt\n")])
def test_an_empty_file_is_reported_before_the_run(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (found,) = step(tmp_path, name).check()
    assert found[:2] == (("source",), f"{name} has no rows")
    (tmp_path / f"more_{name}").write_text(text)
    assert not list(step(tmp_path, f"*{name[1:]}").check()), "another file of a pattern may have some"


def test_parquet_files_are_looked_into_before_the_run(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"], "n": [1, 2]}), tmp_path / "good.parquet")
    assert dict(step(tmp_path, "good.parquet").columns({}).types) == {"uid": "text", "prompt": "messages", "n": "integer"}
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-9])
    (tmp_path / "pointer.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "plain.parquet", compression="none", use_dictionary=False)
    flaw = (tmp_path / "plain.parquet").read_bytes().replace(b"\1\0\0\0a", b"\x7f\0\0\0a", 1)
    (tmp_path / "flaw.parquet").write_bytes(flaw)
    wrong = {
        "cut": "not a parquet file",
        "pointer": "a Git LFS pointer",
        "none": "has no rows",
        "flaw": "flaw.parquet: can't be read",
    }
    for name, told in wrong.items():
        (found,) = step(tmp_path, f"{name}.parquet").check()
        assert found.path == ("source",)
        assert told in found.message


@pytest.mark.parametrize(
    ("told", "kind"), [(253402300800, pa.timestamp("s")), (10**8, pa.date32()), (2**62, pa.duration("s"))], ids=str
)
def test_a_date_that_python_has_no_room_for_makes_a_bad_row(tmp_path: Path, told: int, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"], "when": pa.array([1, told], kind)}), tmp_path / "far.parquet")
    (found,) = step(tmp_path, "far.parquet").check()
    reason = r"far\.parquet: row 2.*: `when` can't be read \(.*\): write this column as text"
    assert re.search(reason, found.message)
    with pytest.raises(ValueError, match=reason):
        load(tmp_path, "far.parquet")
    rows, metrics = loaded(tmp_path, "far.parquet", on_bad_row="quarantine")
    assert ([row["prompt"] for row in rows.pylist()], metrics["bad_rows"]) == ([ask("a")], 1)


def test_a_large_row_group_is_read_by_the_page(tmp_path: Path) -> None:
    plain, packed = tmp_path / "some.parquet", tmp_path / "some.parquet.gz"
    texts = [os.urandom(400).hex() for _ in range(20_000)]
    pq.write_table(pa.table({"prompt": texts}), plain, compression="none", row_group_size=len(texts))
    packed.write_bytes(gzip.compress(plain.read_bytes(), 0))
    assert plain.stat().st_size > 16_000_000
    for path in (plain, packed):
        tracemalloc.start()
        before, lines = pa.total_allocated_bytes(), read_parquet(path)
        assert next(lines).data == {"prompt": texts[0]}
        held = pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert held < 8_000_000
        assert sum(1 for _ in lines) == len(texts) - 1


def test_a_table_with_two_columns_of_one_name_is_reported_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("prompt,topic,topic\na,b,c\n")
    (found,) = step(tmp_path, "some.csv").check()
    assert found == (("source",), "some.csv:1: 2 columns are named `topic`", "give each column its own name")


def test_checks_of_text_files_import_nothing_heavy(prompts: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from caiflow.operators.load import Load, LoadParams;"
        "from caiflow.engine.operator import StepContext;"
        f"load = Load(LoadParams(source='prompts.jsonl'), StepContext(base_dir=Path({str(prompts)!r})));"
        "load.columns({}); list(load.check());"
        "print([name for name in ('pyarrow', 'polars', 'numpy', 'datasets', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_identity_is_content_and_name_not_folder(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("moved")
    (other / "prompts.jsonl").write_bytes((prompts / "prompts.jsonl").read_bytes())
    assert step(prompts, "prompts.jsonl").identity() == step(other, "prompts.jsonl").identity()
    assert step(prompts, "prompts.jsonl", 1).identity() == step(prompts, "prompts.jsonl", 2).identity()
    assert step(prompts, "prompts.jsonl", 1, sample=3).identity() != step(prompts, "prompts.jsonl", 2, sample=3).identity()
    write_jsonl(other / "prompts.jsonl", [{"prompt": "another"}])
    assert step(prompts, "prompts.jsonl").identity() != step(other, "prompts.jsonl").identity()


@needs(DIALOGUES, HHH)
def test_real_dialogues_keep_every_turn(tmp_path: Path) -> None:
    rows, metrics = run_table(step(REAL_DATA, DIALOGUES.name), tmp_path / "all")
    assert metrics == {**metrics, "rows": 200, "bad_rows": 0, "format": "hh"}
    records = [json.loads(line) for line in DIALOGUES.read_text().splitlines()]
    for row, record in zip(rows.pylist(), records, strict=True):
        said = "".join([*(turn["content"] for turn in row["prompt"]), row["chosen"]])
        given_text = record["chosen"].replace("\n\nHuman:", "").replace("\n\nAssistant:", "")
        assert "".join(said.split()) == "".join(given_text.split())
        assert row["response"] == row["chosen"]
        assert row["prompt"][-1]["role"] == "user"


@needs(DIALOGUES, HHH)
def test_real_multiple_choice_prompts_stay_as_they_are(tmp_path: Path) -> None:
    rows, _ = run_table(step(REAL_DATA, HHH.name), tmp_path / "hhh")
    first = json.loads(HHH.read_text().splitlines()[0])
    assert rows.pylist()[0]["prompt"] == ask(first["prompt"])
    assert rows.pylist()[0]["corrects"] == first["corrects"]


def test_records_that_look_alike_are_read_once_for_their_columns(tmp_path: Path) -> None:
    records = [{"prompt": f"Question {i}?", "score": i} for i in range(30)]
    records[20]["label"] = "late"
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    operator = Load(LoadParams(source="d.jsonl"), StepContext(base_dir=tmp_path))
    assert operator.columns({}).types == {"uid": "text", "prompt": "messages", "score": "integer", "label": "text"}
    assert len(operator._head.rows) == 2


def test_a_bad_record_hides_no_good_one_that_looks_like_it(tmp_path: Path) -> None:
    texts = ["no turns", "no turns either", "\n\nHuman: Hi?\n\nAssistant: Hello."]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"chosen": t, "rejected": t}) + "\n" for t in texts))
    operator = Load(LoadParams(source="d.jsonl", format="hh", on_bad_row="quarantine"), StepContext(base_dir=tmp_path))
    assert list(operator.check()) == []
    assert "prompt" in operator.columns({})


def test_a_folder_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "shards.jsonl").mkdir()
    (tmp_path / "shards.jsonl" / "one.jsonl").write_text('{"prompt": "Hi?"}\n')
    ((path, message, hint),) = Load(LoadParams(source="shards.jsonl"), StepContext(base_dir=tmp_path)).check()
    assert (path, message) == (("source",), "shards.jsonl is a folder")
    assert hint == "name its files: `shards.jsonl/*.jsonl`"
    inside = Load(LoadParams(source="shards.jsonl/*.jsonl"), StepContext(base_dir=tmp_path))
    assert list(inside.check()) == []
    assert not Load(LoadParams(source="*.jsonl"), StepContext(base_dir=tmp_path)).sources()


@pytest.mark.parametrize("name", ["d[1].jsonl", "what?.jsonl", "d*.jsonl"])
def test_a_file_that_exists_is_never_a_pattern(tmp_path: Path, name: str) -> None:
    from caiflow.operators.formats.source import resolve

    for other in (name, "d1.jsonl", "whats.jsonl"):
        (tmp_path / other).write_text('{"prompt": "p"}\n')
    (found,) = resolve(name, tmp_path, {})
    assert found.path == tmp_path / name  # type: ignore[union-attr]


def test_a_field_that_is_kept_under_another_name_takes_no_place(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", "response": "old", "source_response": "older"}])
    (row,) = load(tmp_path, "a.jsonl")
    assert (row["response"], row["source_response"], row["source_source_response"]) == ("a", "older", "old")


def test_a_file_that_changes_after_the_plan_is_never_taken_for_what_was_planned(prompts: Path) -> None:
    planned = step(prompts, "prompts.jsonl")
    identity = planned.identity()
    write_jsonl(prompts / "prompts.jsonl", [{"prompt": "another"}])
    with pytest.raises(ValueError, match=r"prompts\.jsonl: it has changed since the run was planned; run again"):
        run_table(pickle.loads(pickle.dumps(planned)), prompts / "out")
    again = step(prompts, "prompts.jsonl")
    assert again.identity() != identity
    assert run_table(again, prompts / "anew")[0].num_rows == 1


def test_a_worker_reads_the_files_of_the_plan_and_the_bundled_ones_of_its_own_package(prompts: Path) -> None:
    planned = step(prompts, "*.jsonl")
    planned.identity()
    rows = run_table(step(prompts, "*.jsonl"), prompts / "before")[0].num_rows
    write_jsonl(prompts / "later.jsonl", [{"prompt": "another"}])
    assert run_table(pickle.loads(pickle.dumps(planned)), prompts / "out")[0].num_rows == rows
    bundled = step(prompts, "tiny:helpful_test.jsonl")
    there = pickle.loads(pickle.dumps(bundled))
    assert there.identity() == bundled.identity()
    assert "_from" not in pickle.loads(pickle.dumps(bundled)).__dict__, "a path of this machine"
