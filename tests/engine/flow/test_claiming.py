"""Two runs of the same rows at once: each call is paid for once, and what a dead or failing run had is done by the other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.flow import claiming
from caiflow.engine.flow.stream import Flow
from caiflow.engine.llm.base import Answer, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger
from support.flows import Ask, params, step, write_source
from support.scripted import ScriptedEngine, last_words

QUESTIONS = [f"question {number}" for number in range(300)]


class SlowEngine(ScriptedEngine):
    """Answers a few at a time, so that two runs meet everywhere."""

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Answer the oldest few."""
        import time

        time.sleep(0.005)
        return super().step()


async def stream(folder: Path, source: Rows, ledgers: Path, engine: ScriptedEngine, times: int, delay_s: float = 0.0) -> Any:
    """Run two steps over the source with ledgers opened here; return the answers in order."""
    await asyncio.sleep(delay_s)
    ask = Ask(params(), times=times)
    steps = [step("first", ask, "source"), step("second", Ask(params(), "answer", "more"), "first")]
    host = EngineHost(lambda: engine)
    open_ledgers = {one.namespace: Ledger(ledgers, one.namespace) for one in steps}
    writers = {
        "first": RowsWriter(folder / "first", {"uid": "text", "question": "text", "answer": "text"}),
        "second": RowsWriter(folder / "second", {"uid": "text", "question": "text", "answer": "text", "more": "text"}),
    }
    try:
        async with EngineClient([LocalLink(host)]) as client:
            await Flow(steps, open_ledgers, {"m": client}, writers).run(source)
    finally:
        host.close()
        for ledger in open_ledgers.values():
            ledger.close()
    for writer in writers.values():
        writer.close()
    return [row["more"] for row in Rows(folder / "second").pylist()]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_two_runs_at_once_pay_once(tmp_path: Path, times: int, delay_s: float) -> None:
    source = write_source(tmp_path / "source", QUESTIONS)
    engines = [SlowEngine(capacity=16, per_step=4) for _ in range(2)]

    async def both() -> Any:
        runs = (
            stream(tmp_path / f"run{n}", source, tmp_path / "ledger", engine, times, n * delay_s)
            for n, engine in enumerate(engines)
        )
        return await asyncio.gather(*runs)

    first, second = asyncio.run(both())
    assert first == second
    assert len(first) == len(QUESTIONS)
    asked = [len(engine.asked) for engine in engines]
    assert sum(asked) == (times + 1) * len(QUESTIONS)
    assert min(asked) > 0


def test_what_fails_in_one_run_is_asked_by_the_other(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", QUESTIONS[:40])
    down = EngineError("down", kind="refused")

    def fails(request: Request) -> Answer:
        return down

    async def both() -> Any:
        bad, good = SlowEngine(fails, per_step=2), SlowEngine(last_words, per_step=2)
        runs = [
            stream(tmp_path / name, source, tmp_path / "ledger", engine, 1) for name, engine in (("bad", bad), ("good", good))
        ]
        return await asyncio.gather(*runs)

    _, good = asyncio.run(asyncio.wait_for(both(), 60))
    assert len(good) == 40


def test_rows_that_another_run_makes_are_said_to_be_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caiflow.engine.flow.stream._TOLD_AFTER_S", 0.0)  # in place of five seconds
    one, source = step("first", Ask(params()), "source"), write_source(tmp_path / "source", QUESTIONS[:3])

    async def wait() -> str:
        host = EngineHost(lambda: ScriptedEngine())
        with Ledger(tmp_path, one.namespace) as held, Ledger(tmp_path, one.namespace) as ledger:
            for row in source.pylist():
                held.claims.take(one.row_key(one.view(row)))
            async with EngineClient([LocalLink(host)]) as client:
                writer = RowsWriter(tmp_path / "out", {"uid": "text", "question": "text", "answer": "text"})
                flow = Flow([one], {one.namespace: ledger}, {"m": client}, {"first": writer})
                running = asyncio.create_task(flow.run(source))
                while not (told := flow.progress()["first"]["waiting"]) or "3 rows" not in told:
                    await asyncio.sleep(0.01)
                held.claims.close()
                await running
                assert flow.progress()["first"]["waiting"] is None
        host.close()
        return str(told)

    assert "that another run is making, for 0 s" in asyncio.run(asyncio.wait_for(wait(), 60))


def test_a_frozen_run_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "PATIENCE_S", 0.2)  # in place of the ten minutes that a frozen process would cost

    async def wait() -> object:
        with Ledger(tmp_path, "n") as frozen, Ledger(tmp_path, "n") as other:
            assert frozen.claims.take(bytes(16))
            async with claiming.claimed(other, bytes(16), lambda: None) as found:
                return found

    assert asyncio.run(wait()) is None
