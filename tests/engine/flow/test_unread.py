"""What an older ledger holds of servers' answers: the empty ones and the lists are asked again once, all else stays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.flow.counting import count_known
from caiflow.engine.flow.outcomes import FlowStep
from caiflow.engine.flow.row_llm import Tally, call_key
from caiflow.engine.flow.stream import Flow
from caiflow.engine.flow.unread import doubtful_answer
from caiflow.engine.llm.base import Completion, Message
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.operator import RowLLM, StepContext
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.store.ledger import Ledger
from caiflow.operators.judge import Judge
from caiflow.operators.judging.params import JudgeParams
from support.flows import Ask, params, step, write_source
from support.scripted import ScriptedEngine
from support.small_constitution import small_constitution

OLD = {
    "null": "",
    "blank": " \n",
    "parts": str([{"type": "text", "text": "Hi."}, {"type": "text", "text": "There."}]),
    "untyped parts": str([{"text": "Hi."}]),
    "half a character": "Hi \ud83d",
}
"""What the older version kept where a server gave no text, or not as one."""
SOUND = ("fine", "[Verse 1]", '[{"type": "text"}]', "[{'name': 'code'}]")


def flow(folder: Path, steps: list[FlowStep], source: Rows, engine: ScriptedEngine) -> dict[str, Tally]:
    async def go() -> dict[str, Tally]:
        host = EngineHost(lambda: engine)
        ledgers = {one.namespace: Ledger(folder / "ledger", one.namespace) for one in steps}
        writers = {one.name: RowsWriter(folder / f"out{len(list(folder.glob('out*')))}" / one.name) for one in steps}
        try:
            async with EngineClient([LocalLink(host)]) as client:
                return await Flow(steps, ledgers, {"m": client}, writers).run(source)
        finally:
            host.close()
            for each in (*ledgers.values(), *writers.values()):
                each.close()

    return asyncio.run(go())


def planned(folder: Path, one: FlowStep, source: Rows) -> Tally:
    with Ledger(folder / "ledger", one.namespace) as ledger:
        return count_known([one], source, lambda namespace: ledger)[one.name]


@pytest.mark.parametrize("served", [True, False])
def test_rows_are_asked_again_where_a_server_gave_no_text(tmp_path: Path, served: bool) -> None:
    kept = [*OLD.values(), *SOUND]
    source = write_source(tmp_path / "source", [f"q{i}" for i in range(len(kept) + 2)])
    one = replace(step("ask", Ask(params()), "source"), served=served)
    with Ledger(tmp_path / "ledger", one.namespace) as ledger:
        records: list[dict[str, Any]] = [{"out": [{"answer": text}], "tokens": 5} for text in kept]
        for i, record in enumerate([*records, {"dropped": "unparsable"}, {"failed": "overflow: too long"}]):
            ledger.append(one.row_key({"uid": f"u{i}", "question": f"q{i}"}), record)
    doubtful = len(OLD) + 1 if served else 0
    assert planned(tmp_path, one, source).calls == doubtful
    empty = ScriptedEngine(lambda request: Completion(""))  # an answer without a text, as it is read now
    flow(tmp_path, [one], source, empty)
    assert len(empty.asked) == doubtful
    again = ScriptedEngine()
    assert planned(tmp_path, one, source).calls == 0
    flow(tmp_path, [one], source, again)
    assert again.asked == []


class AskEach(Ask):
    """Asks once for each of several samples, whatever the others were."""

    async def row(self, row: Row, llm: RowLLM) -> Row:
        asked: list[Message] = [{"role": "user", "content": row["question"]}]
        return {"answer": ascii([(await llm.chat(asked, sample=i)).text for i in range(self.times)])}


@pytest.mark.parametrize("served", [True, False])
def test_calls_are_made_again_where_a_server_gave_no_text(tmp_path: Path, served: bool) -> None:
    kept = [*OLD.values(), *SOUND]
    source = write_source(tmp_path / "source", ["q"])
    one = step("ask", AskEach(params(), times=len(kept)), "source")
    first = ScriptedEngine(lambda request: Completion(kept[len(first.asked) - 1]), per_step=1)
    flow(tmp_path, [one], source, first)  # not `served`: without a mark, as the older version kept it
    with Ledger(tmp_path / "ledger", one.namespace) as ledger:
        for request in first.asked:
            assert "read" not in (ledger.get(call_key("m@1", request)) or {})
    assert not doubtful_answer({"text": "", "finish": "stop", "prompt_logprobs": [-1.0]})
    second = ScriptedEngine(lambda request: Completion(""))
    flow(tmp_path, [replace(one, identity="new", served=served)], source, second)
    assert len(second.asked) == (len(OLD) if served else 0)
    third = ScriptedEngine()
    flow(tmp_path, [replace(one, identity="newer", served=served)], source, third)
    assert third.asked == []


@pytest.mark.parametrize(("unread", "asked"), [(1, 1), (0, 0)])
def test_a_verdict_that_rests_on_no_text_is_asked_again(tmp_path: Path, unread: int, asked: int) -> None:
    given = JudgeParams(input="source", model="m", method="text", swap=False, unparsable="tie", ties="keep")
    operator = Judge(given, StepContext(seed=3, constitution=small_constitution()))
    row = {"uid": "u0", "prompt": "Hi.", "responses": ["Hello.", "Go."]}
    with RowsWriter(tmp_path / "source", {"uid": "text", "prompt": "text", "responses": "texts"}) as writer:
        writer.write_rows([row])
    one = replace(step("judge", operator, "source"), served=True)
    engine = ScriptedEngine(lambda request: Completion("A)"))
    flow(tmp_path, [one], Rows(tmp_path / "source"), engine)
    with Ledger(tmp_path / "ledger", one.namespace) as ledger:
        kept = ledger.get(one.row_key(one.view(row)))
        assert kept is not None
        (out,) = kept["out"]
        ledger.append(one.row_key(one.view(row)), {"out": [{**out, "unparsable_votes": unread}], "tokens": 1})
    flow(tmp_path, [one], Rows(tmp_path / "source"), engine)
    assert len(engine.asked) == 1 + asked
