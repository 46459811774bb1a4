"""`mix`: how many rows of which input, drawn how, in what form, and what must not be in it."""

from __future__ import annotations

import re
import tracemalloc
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from caiflow.engine.operator import StepContext
from caiflow.engine.rows.columns import Columns, Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.operators.mixing import order
from caiflow.operators.mixing.draws import ranks
from caiflow.operators.mixing.mix import Mix
from caiflow.operators.mixing.naming import Naming, naming_of
from caiflow.operators.mixing.params import MixParams
from caiflow.operators.mixing.pool import DRAW, open_pool
from caiflow.operators.sft import Sft, SftParams
from support.tables import ask, rows_of, run_table

ANYWHERE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)


def step(inputs: dict[str, Any], seed: int = 0, **fields: Any) -> Mix:
    return Mix(MixParams(inputs=inputs, **fields), StepContext(seed))


def revisions(count: int, name: str = "r") -> list[Row]:
    return [
        {"uid": f"{name}{n}", "prompt": ask(f"{name} q{n}"), "response": "bad", "revision": f"good {n}"} for n in range(count)
    ]


def helpful(count: int, name: str = "h") -> list[Row]:
    return [{"uid": f"{name}{n}", "prompt": ask(f"{name} q{n}"), "response": f"help {n}", "topic": "t"} for n in range(count)]


def pairs(count: int, name: str = "p") -> list[Row]:
    return [
        {"uid": f"{name}{n}", "prompt": ask(f"{name} q{n}"), "chosen": "a", "rejected": "b", "p_chosen": 0.75}
        for n in range(count)
    ]


def mixed(tmp_path: Path, mix: Mix, **tables: list[Row]) -> tuple[Rows, dict[str, Any]]:
    number = len(list(tmp_path.iterdir()))
    inputs = {name: rows_of(tmp_path / f"{number}-{name}", rows) for name, rows in tables.items()}
    return run_table(mix, tmp_path / f"out{number}", inputs)


def counts(rows: list[Row]) -> Counter[str]:
    return Counter(row["source_step"] for row in rows)


def test_ratios_give_the_largest_mixture_that_no_input_runs_out_in(tmp_path: Path) -> None:
    out, metrics = mixed(tmp_path, step({"r": 1, "h": 2.5}), r=revisions(30), h=helpful(100))
    assert counts(out.pylist()) == {"r": 30, "h": 75}
    assert metrics["mixture"] == {
        "r": {"available": 30, "rows": 30, "share": 0.285714},
        "h": {"available": 100, "rows": 75, "share": 0.714286},
    }
    out, _ = mixed(tmp_path, step({"r": 1, "h": 2.5}), r=revisions(60), h=helpful(100))
    assert counts(out.pylist()) == {"r": 40, "h": 100}


def test_an_anchor_is_taken_whole_and_needs_enough_of_the_others(tmp_path: Path) -> None:
    mix = step({"r": 1, "h": {"ratio": 2}}, anchor="r")
    out, _ = mixed(tmp_path, mix, r=revisions(10), h=helpful(30))
    assert counts(out.pylist()) == {"r": 10, "h": 20}
    with pytest.raises(ValueError, match="20 rows of h are asked for, got 12; lower its share"):
        mixed(tmp_path, mix, r=revisions(10), h=helpful(12))


def test_oversampling_repeats_no_row_before_all_are_in(tmp_path: Path) -> None:
    out, _ = mixed(tmp_path, step({"r": 1, "h": 2}, anchor="r", on_short="oversample"), r=revisions(10), h=helpful(8))
    rows = out.pylist()
    times = Counter(row["uid"].split("#")[0] for row in rows if row["source_step"] == "h")
    assert sorted(times.values()) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert len({row["uid"] for row in rows}) == len(rows) == 30


def test_a_short_input_may_give_what_it_has(tmp_path: Path) -> None:
    out, _ = mixed(tmp_path, step({"r": {"rows": 8}, "h": {"rows": 20}}, on_short="take_all"), r=revisions(10), h=helpful(6))
    assert counts(out.pylist()) == {"r": 8, "h": 6}


def test_rows_are_absolute_numbers_or_all(tmp_path: Path) -> None:
    mix = step({"r": {"rows": 5}, "h": {"rows": "all"}, "g": 1, "f": 1})
    out, _ = mixed(tmp_path, mix, r=revisions(10), h=helpful(7), g=helpful(9, "g"), f=helpful(4, "f"))
    assert counts(out.pylist()) == {"r": 5, "h": 7, "g": 4, "f": 4}


def test_rows_are_drawn_and_shuffled_by_the_seed(tmp_path: Path) -> None:
    def uids(seed: int, **fields: Any) -> list[str]:
        out, _ = mixed(tmp_path, step({"h": {"rows": 40}}, seed, **fields), h=helpful(200))
        return [row["uid"] for row in out.pylist()]

    assert uids(1) == uids(1) != uids(2)
    places = [int(uid[1:]) for uid in uids(1)]
    assert max(places) > 150, "a sample isn't the head"
    assert places != sorted(places)
    assert [f"h{place}" for place in sorted(places)] == uids(1, shuffle=False)


@ANYWHERE
@given(st.integers(0, 9), st.integers(1, 30), st.integers(0, 30))
def test_a_larger_draw_has_all_of_a_smaller_one(tmp_path: Path, seed: int, small: int, more: int) -> None:
    def drawn(number: int) -> set[str]:
        out, _ = mixed(tmp_path, step({"h": {"rows": number}}, seed), h=helpful(60))
        return {row["uid"] for row in out.pylist()}

    assert drawn(small) <= drawn(small + more)


def test_draws_are_even(tmp_path: Path) -> None:
    table = rows_of(tmp_path / "h", helpful(40))
    times: Counter[str] = Counter()
    for seed in range(60):
        out, _ = run_table(step({"h": {"rows": 10}}, seed), tmp_path / f"o{seed}", {"h": table})
        times.update(row["uid"] for row in out.pylist())
    assert len(times) == 40
    assert max(times.values()) < 32, "each is expected 15 times of 60"


def test_messages_are_prompt_and_answer(tmp_path: Path) -> None:
    long = [*ask("q"), {"role": "assistant", "content": "a"}, *ask("and?")]
    given_rows = revisions(3)
    given_rows[1]["prompt"] = long
    out, metrics = mixed(tmp_path, step({"r": 1, "h": {"ratio": 1, "answer": "topic"}}), r=given_rows, h=helpful(3))
    assert metrics["make"] == "messages"
    by_uid = {row["uid"]: row for row in out.pylist()}
    assert by_uid["r1"]["messages"] == [*long, {"role": "assistant", "content": "good 1"}]
    assert by_uid["h2"]["messages"] == [*ask("h q2"), {"role": "assistant", "content": "t"}]
    assert by_uid["r1"]["prompt"] == long
    assert by_uid["h0"]["revision"] is None


@ANYWHERE
@given(st.lists(st.tuples(st.lists(st.text(max_size=5), min_size=1), st.text(max_size=4).map("a".__add__)), min_size=1))
def test_messages_of_any_dialogue(tmp_path: Path, dialogues: list[tuple[list[str], str]]) -> None:
    rows = [
        {"uid": str(n), "prompt": [{"role": "user", "content": text} for text in texts], "response": answer}
        for n, (texts, answer) in enumerate(dialogues)
    ]
    out, _ = mixed(tmp_path, step({"h": 1}, shuffle=False), h=rows)
    expected = [[*row["prompt"], {"role": "assistant", "content": row["response"]}] for row in rows]
    assert [row["messages"] for row in out.pylist()] == expected


def test_messages_without_an_answer_column_are_taken_as_they_are(tmp_path: Path) -> None:
    chat = [*ask("q"), {"role": "assistant", "content": "a"}]
    out, _ = mixed(tmp_path, step({"m": 1}), m=[{"uid": "x", "messages": chat}])
    assert out.pylist()[0]["messages"] == chat


def test_rows_without_an_answer_are_set_aside_and_counted(tmp_path: Path) -> None:
    rows = revisions(4)
    rows[2]["revision"] = None
    out, metrics = mixed(tmp_path, step({"r": 1}), r=rows)
    assert {row["uid"] for row in out.pylist()} == {"r0", "r1", "r3"}
    assert metrics["incomplete"] == {"r": 1}
    assert [(row["uid"], row["reason"]) for row in out.dropped().pylist()] == [("r2", "incomplete")]


def test_preference_rows_mix_with_soft_and_hard_labels(tmp_path: Path) -> None:
    human = [{key: value for key, value in row.items() if key != "p_chosen"} for row in pairs(4, "u")]
    out, metrics = mixed(tmp_path, step({"p": 1, "u": 1}), p=pairs(4), u=human)
    assert metrics["make"] == "preference"
    assert {(row["source_step"], row["p_chosen"]) for row in out.pylist()} == {("p", 0.75), ("u", 1.0)}
    assert "messages" not in out.columns


def test_prompts_alone_mix_without_answers(tmp_path: Path) -> None:
    tables = {name: [{"uid": f"{name}{n}", "prompt": ask(f"{name}{n}")} for n in range(3)] for name in ("a", "b")}
    out, metrics = mixed(tmp_path, step({"a": 1, "b": 1}), **tables)
    assert metrics["make"] == "prompts"
    assert out.num_rows == 6


def test_held_out_prompts_fail_or_are_left_out(tmp_path: Path) -> None:
    rows = [*helpful(5), {"uid": "leak", "prompt": ask("  Test   QUESTION\n"), "response": "a", "topic": "t"}]
    test = [{"uid": "t", "prompt": ask("test question")}]
    mix = step({"h": 1}, held_out=["test"])
    with pytest.raises(ValueError, match="prompts of h are held out by test, got 1 rows, leak the first"):
        mixed(tmp_path, mix, h=rows, test=test)
    out, metrics = mixed(tmp_path, step({"h": 1}, held_out=["test"], on_leak="drop"), h=rows, test=test)
    assert metrics["held_out"] == {"h": 1}
    assert "leak" not in {row["uid"] for row in out.pylist()}
    assert [(row["uid"], row["reason"]) for row in out.dropped().pylist()] == [("leak", "held_out")]
    assert mixed(tmp_path, mix, h=rows[:5], test=test)[0].num_rows == 5


def test_equal_uids_of_two_inputs_stay_apart(tmp_path: Path) -> None:
    out, _ = mixed(tmp_path, step({"a": 1, "b": 1}), a=helpful(3), b=helpful(3))
    assert sorted(row["uid"] for row in out.pylist()) == ["h0", "h0#1", "h1", "h1#1", "h2", "h2#1"]


def test_tag_has_a_name_of_ones_own_or_none(tmp_path: Path) -> None:
    out, _ = mixed(tmp_path, step({"h": 1}, tag="from"), h=helpful(2))
    assert out.pylist()[0]["from"] == "h"
    out, _ = mixed(tmp_path, step({"h": 1}, tag=None), h=helpful(2))
    assert "source_step" not in out.columns
    assert step({"h": 1}, tag=None).identity() == step({"other": 1}, tag=None).identity()
    assert step({"h": 1}).identity() != step({"other": 1}).identity()


def test_arms_of_a_matrix_make_equal_mixtures_of_equal_rows(tmp_path: Path) -> None:
    one, other = step({"r@hard": 1, "h": 1}), step({"r@soft": 1, "h": 1})
    assert one.identity() == other.identity()
    out, _ = mixed(tmp_path, one, **{"r@hard": helpful(2, "a"), "h": helpful(2, "b")})
    assert {row["source_step"] for row in out.pylist()} == {"r", "h"}
    out, _ = mixed(tmp_path, step({"r@hard": 1, "r@soft": 1}), **{"r@hard": helpful(2, "a"), "r@soft": helpful(2, "b")})
    assert {row["source_step"] for row in out.pylist()} == {"r@hard", "r@soft"}


def test_columns_of_two_types_are_left_out_and_numbers_join(tmp_path: Path) -> None:
    first, second = helpful(2, "a"), helpful(2, "b")
    for row in first:
        row |= {"score": 1, "odd": "text"}
    for row in second:
        row |= {"score": 0.5, "odd": 3}
    out, _ = mixed(tmp_path, step({"a": 1, "b": 1}), a=first, b=second)
    assert {row["score"] for row in out.pylist()} == {1.0, 0.5}
    assert "odd" not in out.columns


def test_objects_of_several_inputs_keep_the_fields_of_all(tmp_path: Path) -> None:
    one = [{**row, "about": {"source": "x", "n": 1}, "calls": [{"name": "f"}], "tags": [1]} for row in helpful(2, "a")]
    other = [{**row, "about": {"url": "y", "n": 0.5}, "calls": [{"args": ["z"]}], "tags": [[2]]} for row in helpful(2, "b")]
    out, metrics = mixed(tmp_path, step({"a": 1, "b": 1}), a=one, b=other)
    found = {row["uid"]: (row["about"], row["calls"]) for row in out.pylist()}
    assert found["a0"] == ({"source": "x", "n": 1.0, "url": None}, [{"name": "f", "args": None}])
    assert found["b0"] == ({"source": None, "n": 0.5, "url": "y"}, [{"name": None, "args": ["z"]}])
    assert metrics["columns_left_out"] == ["tags"], "no type holds numbers and lists of them"


def test_nothing_fit_is_an_error_with_the_counts_by_reason(tmp_path: Path) -> None:
    rows = [{**row, "revision": None} for row in revisions(2)]
    with pytest.raises(ValueError, match=r"no row of r is fit for the mixture \(r has 2 rows: 2 incomplete\)"):
        mixed(tmp_path, step({"r": 1, "h": 1}), r=rows, h=helpful(2))
    both = [*rows, *({**row, "revision": "good"} for row in helpful(3, "r"))]
    leaky = step({"r": {"ratio": 1, "answer": "revision"}, "h": 1}, held_out=["t"], on_leak="drop")
    with pytest.raises(ValueError, match=r"\(r has 5 rows: 2 incomplete, 3 held_out\)"):
        mixed(tmp_path, leaky, r=both, h=helpful(2), t=[{"uid": f"t{n}", "prompt": ask(f"r q{n}")} for n in (0, 1, 2)])


def test_an_input_whose_step_left_out_all_its_rows_says_why_it_did(tmp_path: Path) -> None:
    with RowsWriter(tmp_path / "empty", {"uid": "text", "prompt": "messages", "chosen": "text", "rejected": "text"}) as out:
        out.drop(pairs(3), "tie")
        out.drop(pairs(1, "x"), "unparsable")
    inputs = {"r": Rows(tmp_path / "empty"), "h": rows_of(tmp_path / "h", pairs(2))}
    with pytest.raises(ValueError, match=r"\(r has 0 rows, having left out 3 tie, 1 unparsable\)"):
        run_table(step({"r": 1, "h": 1}), tmp_path / "out", inputs)


def test_rows_without_answers_are_known_from_the_columns() -> None:
    known = {"prompt": "messages", "response": "text"}
    full, empty, some = Columns(known), Columns(known, gaps={"response": "all"}), Columns(known, gaps={"response": "some"})
    prompts = Columns({"prompt": "messages"})
    both = step({"a": 1, "b": 1})
    assert both.columns({"a": full, "b": some}).gaps == {}, "rows without an answer aren't taken"
    (found,) = both.check_columns({"a": full, "b": empty})
    assert (found.path, found.message) == (("inputs", "b"), "no row of `b` has anything in `response`")
    assert not list(both.check_columns({"a": full, "b": some}))
    as_prompts = both.columns({"a": full, "b": prompts})
    assert as_prompts.gaps == {"response": "some"}
    assert as_prompts.nothing_in(["revision", "response"]) == "response"
    assert as_prompts.nothing_in(["prompt"]) is None
    assert both.columns({"a": full, "b": Columns({}, open=True)}).gaps == {}


def test_a_revision_is_not_learnt_in_place_of_the_answer_that_was_named() -> None:
    """`sft` and another `mix` take a row's `revision` first, also beside `messages` that end with another answer."""
    revised, plain = Columns({"prompt": "messages", "revision": "text", "text": "text"}), Columns({"messages": "messages"})
    named, unnamed = step({"a": {"rows": "all", "answer": "text"}, "b": 1}), step({"a": 1, "b": 1})

    def refused(mix: Mix, **fields: Any) -> list[tuple[Any, str]]:
        mixture = mix.columns({"a": revised, "b": plain}).sifted()
        learning = Sft(SftParams.model_validate({"input": "m", "model": "base", **fields}), StepContext())
        found = [*learning.check_columns({"m": mixture}), *step({"m": 1}).check_columns({"m": mixture})]
        return [(told.path, told.hint) for told in found]

    both = "write `column: messages` to learn those, `column: revision` if that is meant"
    again = (("inputs", "m"), "name the column under `answer` here, too")
    assert refused(named) == [(("column",), both), again]
    assert refused(named, column="messages") == [again]
    assert not refused(unnamed)
    assert not refused(step({"a": {"rows": "all", "answer": "revision"}, "b": 1}))
    shared = step({"m": {"rows": "all", "answer": "text"}})
    assert not list(shared.check_columns({"m": named.columns({"a": revised, "b": plain})}))


def test_a_missing_answer_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="input h has no column 'revision', got uid, prompt, response, topic"):
        mixed(tmp_path, step({"h": {"ratio": 1, "answer": "revision"}}, make="messages"), h=helpful(2))


def test_large_mixtures_go_over_the_disk_and_come_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = step({"r": 1, "h": 2}, 5)
    small, _ = mixed(tmp_path, mix, r=revisions(20_000), h=helpful(50_000))
    monkeypatch.setattr(order, "PART_BYTES", 100_000)
    large, _ = mixed(tmp_path, mix, r=revisions(20_000), h=helpful(50_000))
    assert [file.name for file in large.files] == [file.name for file in small.files]
    assert [file.read_bytes() for file in large.files] == [file.read_bytes() for file in small.files]
    assert not (large.dir / "__arrange").exists()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"inputs": {"a": {"ratio": 1, "rows": 2}}}, ("inputs", "a")),
        ({"inputs": {"a": {"answer": "x"}}}, ("inputs", "a")),
        ({"inputs": {"a": 1}, "anchor": "b"}, ("anchor",)),
        ({"inputs": {"a": {"rows": 2}}, "anchor": "a"}, ("anchor",)),
        ({"inputs": {"a": 1}, "held_out": ["a"]}, ("held_out", 0)),
    ],
)
def test_checks(fields: dict[str, Any], path: tuple[Any, ...]) -> None:
    assert [found[0] for found in step(fields.pop("inputs"), **fields).check()] == [path]
    assert not list(step({"a": 1, "b": {"rows": "all"}}, held_out=["c"]).check())


@pytest.mark.parametrize("share", [0, -1, {"ratio": 0}, {"rows": 0}, {"rows": "some"}, {"share": 1}])
def test_shares_that_make_no_sense_are_refused(share: Any) -> None:
    with pytest.raises(ValidationError):
        step({"a": share})


def test_columns_and_needs_before_the_run() -> None:
    chat: dict[str, Any] = {"uid": "text", "prompt": "messages"}
    inputs = {"a": Columns({**chat, "revision": "text"}), "b": Columns({**chat, "response": "text"}), "t": Columns(chat)}
    made = step({"a": 1, "b": 1}, held_out=["t"])
    assert made.columns(inputs).types == {
        **chat,
        "revision": "text",
        "response": "text",
        "messages": "messages",
        "source_step": "text",
    }
    assert made.needs() == {"a": ["prompt"], "b": ["prompt"], "t": ["prompt"]}
    assert step({"a": 1}, make="preference").needs() == {"a": ["prompt", "chosen", "rejected"]}


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "system", "content": "Be brief."}, *ask("What is SECRET?")],
        [*ask("what  is secret?"), {"role": "assistant", "content": "This."}, *ask("And that?")],
        ask("Ｗhat is secret?"),
    ],
)
def test_a_held_out_prompt_is_found_under_a_system_turn_and_as_an_opening(tmp_path: Path, prompt: Any) -> None:
    rows = [*helpful(3), {"uid": "leak", "prompt": prompt, "response": "x"}, {"uid": "none", "prompt": [], "response": "x"}]
    mix = step({"h": 1}, held_out=["test"], on_leak="drop")
    out, metrics = mixed(tmp_path, mix, h=rows, test=[{"uid": "t", "prompt": ask("What is secret?")}])
    assert metrics["held_out"] == {"h": 1}
    assert "leak" not in {row["uid"] for row in out.pylist()}


def test_uids_stay_unique_in_a_mixture_of_mixtures(tmp_path: Path) -> None:
    rows = helpful(3)
    once, _ = mixed(tmp_path, step({"h": {"rows": 5}}, on_short="oversample"), h=rows)
    twice, _ = mixed(tmp_path, step({"m": {"rows": "all"}, "h": {"rows": "all"}}, shuffle=False), m=once.pylist(), h=rows)
    uids = [row["uid"] for row in twice.pylist()]
    assert len(set(uids)) == len(uids) == 8
    assert {uid.partition("#")[0] for uid in uids} == {"h0", "h1", "h2"}


def test_names_are_given_as_rows_come_by_as_if_all_were_known(tmp_path: Path) -> None:
    def rows(*uids: str) -> list[Row]:
        return [{"uid": uid, "prompt": ask(f"q {uid}"), "response": "x"} for uid in uids]

    first, second = rows("a", "b", "c#1", "d#x"), rows("a", "a#1", "a#3", "c", "a#1#1")
    mix = step({"m": {"rows": 8}, "n": {"rows": 10}}, on_short="oversample", shuffle=False)
    out, _ = mixed(tmp_path, mix, m=first, n=second)
    named = [
        *("a", "a#2", "b", "b#1", "c#1", "c#1#1", "d#x", "d#x#1"),
        *("a#4", "a#5", "a#1", "a#1#2", "a#3", "a#3#1", "c", "c#2", "a#1#1", "a#1#1#1"),
    ]
    assert [row["uid"] for row in out.pylist()] == named  # not `a#1`: that is a row's own name, whenever it comes


@settings(max_examples=30, deadline=None)
@given(st.lists(st.from_regex(r"[ab]((#[0-3])|x|\x00){0,2}", fullmatch=True), min_size=2, max_size=40), st.integers(1, 40))
def test_names_are_those_that_a_table_of_all_names_would_give(uids: list[str], at_once: int) -> None:
    def ranked(texts: list[str]) -> NDArray[np.uint64]:
        return np.unique(ranks(texts, 0, DRAW))

    numbered = [uid for uid in uids if re.search(r"#[0-9]+\Z", uid)]
    naming = Naming(ranked([uid for uid, times in Counter(uids).items() if times > 1]), ranked(numbered), 0)
    batches = [pa.chunked_array([uids[start : start + at_once]], pa.string()) for start in range(0, len(uids), at_once)]
    names = [name for batch in batches for name in naming.named(batch).to_pylist()]
    last: dict[str, int] = {}
    for uid, name in zip(uids, names, strict=True):
        free = (n for n in count(last[uid] + 1) if f"{uid}#{n}" not in numbered) if uid in last else iter([0])
        last[uid] = next(free)
        assert name == (f"{uid}#{last[uid]}" if last[uid] else uid)


def test_naming_holds_eight_bytes_of_a_uid_that_has_a_number(tmp_path: Path) -> None:
    with RowsWriter(tmp_path) as writer:
        writer.write(pa.table({"uid": [f"row {n}#1" for n in range(20_000)], "response": ["x"] * 20_000}))
    pool = open_pool("h", Rows(tmp_path), ["response"], None, seed=0)
    tracemalloc.start()
    naming = naming_of([pool], [pool.draw(20_010)], 0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert naming is not None
    assert held < 12 * 20_000


def test_a_pool_holds_nine_bytes_a_row_and_no_uid(tmp_path: Path) -> None:
    uids = [f"a rather long name of row {n}" for n in range(40_000)]
    with RowsWriter(tmp_path) as writer:
        writer.write(pa.table({"uid": uids, "response": ["x"] * len(uids)}))
    before = pa.total_allocated_bytes()
    pool = open_pool("h", Rows(tmp_path), ["response"], None, seed=0)
    drawn = pool.draw(70_000)
    assert pool.states.nbytes + pool.ranks.nbytes == 9 * len(uids)
    assert pa.total_allocated_bytes() - before < 100_000
    sizes = [len(table) for table in pool.read(drawn)]
    assert sum(sizes) == 70_000
    assert max(sizes) <= 16_384


def test_what_a_row_takes_is_told_of_texts_that_the_file_has_once(tmp_path: Path) -> None:
    table = pa.table({"uid": [f"u{n}" for n in range(5000)], "response": ["the same words " * 99] * 5000})
    with RowsWriter(tmp_path) as writer:
        writer.write(table)
    pool = open_pool("h", Rows(tmp_path), ["response"], None, seed=0)
    assert pool.row_bytes(lambda rows: rows) == pytest.approx(table.nbytes / 5000, rel=0.1)


def test_a_tag_never_takes_the_place_of_a_column() -> None:
    known = {"h": Columns({"uid": "text", "prompt": "messages", "response": "text", "topic": "text", "source_step": "text"})}
    for tag in ("uid", "prompt", "messages", "topic"):
        ((path, message, _),) = step({"h": 1}, tag=tag).check_columns(known)
        assert path == ("tag",)
        assert f"`{tag}`" in message
    assert not list(step({"h": 1}).check_columns(known)), "the tag of an inner mixture is replaced"


def test_a_small_ratio_still_gives_a_row_and_columns_left_out_are_named(tmp_path: Path) -> None:
    one, other = helpful(10), [{**row, "topic": 1} for row in helpful(4, "o")]
    out, metrics = mixed(tmp_path, step({"h": 1, "o": 0.01}), h=one, o=other)
    assert counts(out.pylist()) == {"h": 10, "o": 1}
    assert metrics["columns_left_out"] == ["topic"]


def test_rows_with_an_empty_answer_are_unfit(tmp_path: Path) -> None:
    rows = [*revisions(3), {"uid": "e", "prompt": ask("q"), "response": "bad", "revision": " \n"}]
    out, metrics = mixed(tmp_path, step({"r": 1}), r=rows)
    assert (out.num_rows, metrics["incomplete"]) == (3, {"r": 1})
    assert [(row["uid"], row["reason"]) for row in out.dropped().pylist()] == [("e", "incomplete")]
