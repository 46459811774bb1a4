"""Rows through chains of operators: order, drops, failures, splitting, and what the ledger spares."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError, StepError, StoreError
from caiflow.engine.flow.counting import count_known
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.row_llm import Tally
from caiflow.engine.flow.stream import Flow
from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.operator import ModelRowParams, RowLLM, RowOperator, StepContext
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger
from support.flows import Ask, params, step, write_source
from support.scripted import ScriptedEngine, last_words


class Split(RowOperator[ModelRowParams]):
    """Makes two rows of each."""

    name = "split"
    params_type = ModelRowParams

    def reads(self) -> tuple[str, ...]:
        return ("answer",)

    def writes(self) -> dict[str, ColumnType]:
        return {"half": "text"}

    async def row(self, row: Row, llm: RowLLM) -> list[Row]:
        return [{"half": row["answer"][:4]}, {"half": row["answer"][-4:]}]


def run(
    tmp_path: Path, steps: list[FlowStep], source: Rows, engine: ScriptedEngine, told: list[dict[str, Any]] | None = None
) -> tuple[dict[str, Tally], dict[str, Rows]]:
    """Run a chain; `told` takes its progress as it goes, and at the end."""

    async def watch(flow: Flow) -> None:
        while told is not None:
            told.append(flow.progress())
            await asyncio.sleep(0.005)

    async def go() -> dict[str, Tally]:
        host = EngineHost(lambda: engine)
        ledgers = {s.namespace: Ledger(tmp_path / "ledger", s.namespace) for s in steps}
        writers = {s.name: RowsWriter(tmp_path / f"out{len(list(tmp_path.glob('out*')))}" / s.name) for s in steps}
        folders.update({name: writer.dir for name, writer in writers.items()})
        try:
            async with EngineClient([LocalLink(host)]) as client:
                flow = Flow(steps, ledgers, {"m": client}, writers)
                watching = asyncio.create_task(watch(flow))
                tallies = await flow.run(source)
                watching.cancel()
                if told is not None:
                    told.append(flow.progress())
        finally:
            for ledger in ledgers.values():
                ledger.close()
            host.close()
        for s in steps:
            if not tallies[s.name].error:
                writers[s.name].close()
        return tallies

    folders: dict[str, Path] = {}
    tallies = asyncio.run(go())
    return tallies, {name: Rows(folder) for name, folder in folders.items()}


def test_a_chain_keeps_the_order_of_the_source_and_its_columns(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [f"question {i}" for i in range(2500)])
    chain = [step("one", Ask(params()), "source"), step("two", Ask(params(), "answer", "second"), "one")]
    tallies, out = run(tmp_path, chain, source, ScriptedEngine(per_step=50))
    rows = out["two"].pylist()
    assert [row["uid"] for row in rows] == [f"u{i}" for i in range(2500)]
    assert all(row["answer"].startswith(f"re: {row['question']}") for row in rows)
    assert all(row["answer"][-30:] in row["second"] for row in rows)
    assert (tallies["two"].done, tallies["two"].calls) == (2500, 2500)


def test_dropped_rows_stay_beside_with_the_reason_and_are_not_asked_again(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["a", "leave me out", "c"])
    chain = [step("one", Ask(params()), "source"), step("two", Ask(params(), "answer", "second"), "one")]
    for _ in range(2):
        engine = ScriptedEngine()
        tallies, out = run(tmp_path, chain, source, engine)
        assert [row["question"] for row in out["two"].pylist()] == ["a", "c"]
        assert [(row["uid"], row["reason"]) for row in out["one"].dropped().pylist()] == [("u1", "asked to")]
        assert tallies["one"].drop_reasons == {"asked to": 1}
    assert engine.asked == []


def test_equal_texts_stay_separate_rows_with_their_own_seeds(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["same"] * 5)
    engine = ScriptedEngine()
    _, out = run(tmp_path, [step("one", Ask(params()), "source")], source, engine)
    assert len({request.seed for request in engine.asked}) == 5
    assert len({row["answer"] for row in out["one"].pylist()}) == 5


def test_only_new_rows_run_when_the_source_grows(tmp_path: Path) -> None:
    chain = [step("one", Ask(params()), "source"), step("two", Ask(params(), "answer", "second"), "one")]
    run(tmp_path, chain, write_source(tmp_path / "small", [f"q{i}" for i in range(20)]), ScriptedEngine())
    grown = write_source(tmp_path / "grown", [f"q{i}" for i in range(22)])
    ledgers = {s.namespace: Ledger(tmp_path / "ledger", s.namespace) for s in chain}
    planned = count_known(chain, grown, ledgers.__getitem__)
    assert {name: tally.total - tally.cached for name, tally in planned.items()} == {"one": 2, "two": 2}
    engine = ScriptedEngine()
    tallies, out = run(tmp_path, chain, grown, engine)
    assert len(engine.asked) == 4
    assert (tallies["two"].cached, tallies["two"].done, out["two"].num_rows) == (20, 2, 22)


def test_a_changed_step_reruns_and_the_step_after_it_only_where_the_text_changed(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [f"q{i}" for i in range(10)])

    def chain(identity: str) -> list[FlowStep]:
        return [step("one", Ask(params()), "source", identity), step("two", Ask(params(), "answer", "second"), "one")]

    run(tmp_path, chain("before"), source, ScriptedEngine())
    engine = ScriptedEngine()
    tallies, _ = run(tmp_path, chain("after"), source, engine)
    assert (tallies["one"].done, tallies["two"].cached) == (10, 10)  # same answers as before: the second step has them
    assert len(engine.asked) == 10


def test_rows_that_split_get_uids_of_their_own_in_order(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["a", "b"])
    chain = [step("one", Ask(params()), "source"), step("two", Split(params(), StepContext()), "one")]
    _, out = run(tmp_path, chain, source, ScriptedEngine())
    assert [row["uid"] for row in out["two"].pylist()] == ["u0/0", "u0/1", "u1/0", "u1/1"]


def fail_on(word: str, error: EngineError) -> Any:
    def script(request: Request) -> Answer:
        return error if word in str(request.prompt) else last_words(request)

    return script


def test_a_failing_row_fails_its_step_and_leaves_the_step_before_whole(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["good", "bad", "fine"])
    chain = [step("one", Ask(params()), "source"), step("two", Ask(params(), "answer", "second"), "one")]
    overflow = EngineError("too long", kind="overflow")
    tallies, out = run(tmp_path, chain, source, ScriptedEngine(fail_on("re: bad", overflow)))
    assert tallies["one"].error == ""
    assert out["one"].num_rows == 3
    assert "u1" in tallies["two"].error
    assert "overflow: too long" in tallies["two"].error
    assert tallies["two"].error.endswith("; rows that fail for good are set aside with `max_failed`, up to that many")


def test_allowed_failures_are_quarantined_and_leave_a_tombstone(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["good", "bad", "fine"])
    chain = [step("one", Ask(params(max_failed=1)), "source")]
    script = fail_on("bad", EngineError("too long", kind="overflow"))
    tallies, out = run(tmp_path, chain, source, ScriptedEngine(script))
    assert (tallies["one"].error, out["one"].num_rows, tallies["one"].failed) == ("", 2, 1)
    assert out["one"].dropped().pylist()[0]["reason"].startswith("failed: overflow")
    engine = ScriptedEngine(script)
    run(tmp_path, chain, source, engine)
    assert engine.asked == []


def test_a_failure_that_may_pass_is_retried_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["good", "bad"])
    tries = []

    def script(request: Request) -> Answer:
        if "bad" in str(request.prompt):
            tries.append(1)
            return EngineError("slow", kind="timeout", retry=True)
        return last_words(request)

    chain = [step("one", Ask(params(retries=1)), "source")]
    tallies, _ = run(tmp_path, chain, source, ScriptedEngine(script))
    assert "timeout" in tallies["one"].error
    assert "max_failed" not in tallies["one"].error, "the next run may be more lucky"
    assert len(tries) == 2
    tallies, out = run(tmp_path, chain, source, ScriptedEngine())
    assert (tallies["one"].cached, tallies["one"].done, out["one"].num_rows) == (1, 1, 2)


def test_a_store_that_takes_no_answer_ends_the_flow_and_is_no_row_s_failure(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["a", "b", "c"])
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "one-m").touch()  # where its folder should be
    engine = ScriptedEngine(capacity=1)
    with pytest.raises(StoreError, match="one-m"):
        run(tmp_path, [step("one", Ask(params(max_failed=3), times=2), "source")], source, engine)
    assert len(engine.asked) < 3


def test_calls_of_an_unfinished_row_are_kept_one_by_one(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["q"])
    chain = [step("one", Ask(params(retries=0), times=3), "source")]
    seen: list[int] = []

    def dies_at_the_third(request: Request) -> Answer:
        seen.append(1)
        return EngineError("gone", kind="timeout") if len(seen) == 3 else last_words(request)

    run(tmp_path, chain, source, ScriptedEngine(dies_at_the_third))
    engine = ScriptedEngine()
    tallies, _ = run(tmp_path, chain, source, engine)
    assert len(engine.asked) == 1
    assert tallies["one"].reused_calls == 2


def test_older_rows_go_first(tmp_path: Path) -> None:
    """With four slots and 40 rows, the first row is through all three steps long before the last one starts."""
    source = write_source(tmp_path / "source", [f"q{i:02}" for i in range(40)])
    chain = [step("a", Ask(params()), "source")]
    for before, name in (("a", "b"), ("b", "c")):
        column = {"a": "answer", "b": "b"}[before]
        chain.append(step(name, Ask(params(), column, name), before))
    engine = ScriptedEngine(capacity=4, per_step=4)
    run(tmp_path, chain, source, engine)
    stages = ["re: re: " in str(r.prompt) for r in engine.asked]
    assert True in stages[:40]
    assert all(f"q{request.turn:02}" in str(request.prompt) for request in engine.asked)


def test_calls_say_how_many_of_the_row_s_will_follow_with_the_same_engine(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["q0", "q1"])
    chain = [step("a", Ask(params(), times=2), "source"), step("b", Ask(params(), "answer", "b"), "a")]
    chain.append(step("c", Ask(params(), "answer", "c"), "a"))
    engine = ScriptedEngine()
    run(tmp_path, chain, source, engine)
    assert sorted(request.more for request in engine.asked) == [0, 0, 0, 0, 2, 2, 2, 2]
    assert len({request.row for request in engine.asked}) == 2


@pytest.mark.parametrize("capacity", [1, 3, 64])
def test_results_do_not_depend_on_the_engine_s_size(tmp_path: Path, capacity: int) -> None:
    source = write_source(tmp_path / "source", [f"q{i}" for i in range(30)])
    engine = ScriptedEngine(lambda r: Completion(str(r.seed)), capacity=capacity, per_step=capacity)
    _, out = run(tmp_path, [step("one", Ask(params()), "source")], source, engine)
    reference = ScriptedEngine(lambda r: Completion(str(r.seed)))
    _, alone = run(tmp_path / "other", [step("one", Ask(params()), "source")], source, reference)
    assert out["one"].pylist() == alone["one"].pylist()


class Mistyped(Ask):
    """Names a column that it doesn't write."""

    async def row(self, row: Row, llm: RowLLM) -> Row:
        return {"anwser": row[self.column]}


def test_a_column_that_an_operator_does_not_declare_fails_the_row_by_name(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["one?"])
    tallies, _ = run(tmp_path, [step("ask", Mistyped(params()), "source")], source, ScriptedEngine(last_words))
    assert tallies["ask"].failed == 1
    assert "returned `anwser`, which `writes()` doesn't name; did you mean `answer`?" in tallies["ask"].error


class Anew(Ask):
    """Asks again, and leaves out what was true of the first answer."""

    def outdates(self) -> tuple[str, ...]:
        return ("note", "old")


def test_outdated_columns_are_gone_from_there_on(tmp_path: Path) -> None:
    with RowsWriter(tmp_path / "source") as writer:
        writer.write_rows([{"uid": q, "question": q, "old": "x", "topic": "y"} for q in ("one?", "leave me out")])
    chain = [
        step("first", Ask(params(), "topic", "note"), "source"),
        step("again", Anew(params()), "first"),
        step("noted", Ask(params(), "topic", "note"), "again"),
    ]
    _, out = run(tmp_path, chain, Rows(tmp_path / "source"), ScriptedEngine(last_words))
    assert set(out["first"].columns) == {"uid", "question", "old", "topic", "note"}
    assert set(out["again"].columns) == {"uid", "question", "topic", "answer"}
    assert set(out["noted"].columns) == {"uid", "question", "topic", "answer", "note"}
    assert [row["uid"] for row in out["again"].pylist()] == ["one?"]
    assert set(out["again"].dropped().columns) >= {"question", "old", "note"}


class Unstable(Ask):
    """Says what is written otherwise in every process."""

    def row_identity(self, row: Row) -> Any:
        return {"principles": {"be kind", "be brief"}}


def test_a_row_without_a_stable_identity_is_refused_by_run_and_plan(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["one"])
    said = r"^one: row u0: identity: principles: set has no form that is always the same, got {.*}; give text"
    with pytest.raises(StepError, match=said):
        run(tmp_path, [step("one", Unstable(params()), "source")], source, ScriptedEngine(last_words))
    with pytest.raises(StepError, match=said):
        count_known([step("one", Unstable(params()), "source")], source, lambda name: Ledger(tmp_path / "ledger", name))


def test_progress_counts_every_row_whatever_became_of_it_and_expects_those_to_come(tmp_path: Path) -> None:
    questions = [f"question {i}" for i in range(300)] + ["leave me out"] * 20 + ["break"] * 10
    source = write_source(tmp_path / "source", questions)
    chain = [step("one", Ask(params(max_failed=10)), "source"), step("two", Ask(params(), "answer", "second"), "one")]
    engine = ScriptedEngine(fail_on("break", EngineError("too long", kind="overflow")), per_step=8)
    first: list[dict[str, Any]] = []
    run(tmp_path, chain, source, engine, first)
    totals = [progress["two"]["total"] for progress in first]
    assert totals == sorted(totals, reverse=True), "rows to come are expected from the start, and only lost ones leave"
    assert (totals[0], totals[-1]) == (330, 300)
    one, two = first[-1]["one"], first[-1]["two"]
    assert (one["done"], one["total"], one["dropped"], one["failed"]) == (330, 330, 20, 10)
    assert (two["done"], two["left_s"]) == (300, 0.0)
    assert 0 < one["tokens_per_second"] == pytest.approx(one["completion_tokens"] / one["busy_s"])

    again: list[dict[str, Any]] = []
    run(tmp_path, chain, source, engine, again)
    one = again[-1]["one"]
    assert (one["done"], one["cached"], one["dropped"], one["failed"]) == (330, 300, 20, 10)


class Halve(Ask):
    """Fails at what isn't even."""

    name = "halve"

    async def row(self, row: Row, llm: RowLLM) -> Row:
        return {"answer": str(1 // (len(row["question"]) % 2))}


def test_what_an_operator_raises_is_told_with_its_traceback(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["odd", "even"])
    tallies, _ = run(tmp_path, [step("one", Halve(params()), "source")], source, ScriptedEngine())
    first, *rest = tallies["one"].error.splitlines()
    assert first.startswith("row u1: ZeroDivisionError: ")
    assert rest[0] == "Traceback (most recent call last):"
    assert any('1 // (len(row["question"]) % 2)' in line for line in rest)
