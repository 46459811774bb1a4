"""For whom a chain waits: a server that refuses or is silent is named on the way to the screen, with how long."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from caiflow.engine.flow.stream import Flow
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.served.pace import Pace
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.store.ledger import Ledger
from support.bad_server import bad_server
from support.flows import Ask, params, step, write_source


def test_a_server_that_refuses_is_named_with_how_long_it_is_waited_for(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", ["one", "two"])
    one = step("first", Ask(params()), "source")

    async def told(url: str) -> str:
        served = ModelSource("m", identity="e", engine="openai", options={"base_url": url})
        host = EngineHost(lambda: load_engine(served))
        with Ledger(tmp_path, one.namespace) as ledger:
            async with EngineClient([LocalLink(host)]) as client:
                writer = RowsWriter(tmp_path / "out", {"uid": "text", "question": "text", "answer": "text"})
                flow = Flow([one], {one.namespace: ledger}, {"m": client}, {"first": writer})
                running = asyncio.create_task(flow.run(source))
                while not (told := flow.progress()["first"]["waiting"]):
                    await asyncio.sleep(0.05)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        host.close()
        return str(told)

    with bad_server() as server:
        server.reply = lambda body, n: (429, {"Retry-After": "90"}, "too many")
        said = asyncio.run(asyncio.wait_for(told(server.url), 60))
        assert said.startswith(f"{server.url} has refused")
        assert "it is asked again in" in said


def test_a_server_that_says_nothing_is_told_once_that_takes_long() -> None:
    async def silent() -> list[str]:
        pace = Pace(4)
        await pace.enter()
        told = [pace.told(time.monotonic() + later_s) for later_s in (5, 60)]
        pace.leave()
        return [*told, pace.told(time.monotonic() + 60)]

    soon, late, after = asyncio.run(silent())
    assert (soon, after) == ("", "")
    assert late == "has answered none of 1 calls for 60 s"
