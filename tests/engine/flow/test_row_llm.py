"""The model as one row sees it, over a real host and client: what is kept in the ledger, and what is asked again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.flow.row_llm import Asker, LedgeredLLM, Tally, call_key
from caiflow.engine.llm.base import Answer, Completion, Message, Request
from caiflow.engine.llm.client import EngineClient, LocalLink
from caiflow.engine.llm.host import EngineHost
from caiflow.engine.store.ledger import Ledger
from support.scripted import ScriptedEngine

SAID: list[Message] = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]


def scores(request: Request) -> Answer:
    return Completion("", "stop", 5, prompt_logprobs=(-0.5, -2.0)) if request.score else Completion("hello")


def scored(engine: ScriptedEngine, folder: Path, *uids: str) -> list[list[float]]:
    async def run() -> list[list[float]]:
        with Ledger(folder, "n") as ledger:
            async with EngineClient([LocalLink(host)]) as client:
                llms = [LedgeredLLM(client, ledger, Asker("e", 1, "m"), uid, Tally()) for uid in uids]
                return [list((await llm.score(SAID)).prompt_logprobs or ()) for llm in llms]

    host = EngineHost(lambda: engine)
    try:
        return asyncio.run(run())
    finally:
        host.close()


def test_a_texts_scores_are_kept_whatever_row_asks(tmp_path: Path) -> None:
    first, again = ScriptedEngine(scores), ScriptedEngine(scores)
    assert scored(first, tmp_path, "a", "b") == [[-0.5, -2.0]] * 2
    assert scored(again, tmp_path, "c") == [[-0.5, -2.0]]
    assert (len(first.asked), len(again.asked)) == (1, 0)


def test_an_engine_that_scores_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="without the prompt's log-probabilities"):
        scored(ScriptedEngine(lambda request: Completion("hello")), tmp_path, "a")


def test_a_score_and_an_answer_have_keys_of_their_own() -> None:
    assert call_key("m", Request("a")) != call_key("m", Request("a", score=True))
