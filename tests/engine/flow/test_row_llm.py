"""The model as one row sees it, over a real host and client: what is kept in the ledger, and what is asked again."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.flow.row_llm import Asker, LedgeredLLM, Tally, call_key
from caiflow.engine.llm.base import Answer, Completion, Message, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
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


class Slow(Ledger):
    """One of a group, whose common records are open only once the loop that asks for them has done something else."""

    went_on = threading.Event()

    @property
    def common(self) -> Ledger:
        assert self.went_on.wait(20)
        return super().common


def test_the_records_of_a_whole_group_are_opened_beside_other_work_and_once(tmp_path: Path) -> None:
    async def run(ledger: Slow) -> Sequence[Completion]:
        async with EngineClient([LocalLink(host)]) as client:
            llms = [LedgeredLLM(client, ledger, Asker("e", 1, "m"), uid, Tally()) for uid in "ab"]
            asked = asyncio.gather(*(llm.score(SAID) for llm in llms))
            await asyncio.sleep(0)  # both have begun
            ledger.went_on.set()
            return await asked

    engine = ScriptedEngine(scores)
    host = EngineHost(lambda: engine)
    try:
        with Slow(tmp_path, "n", apart="group-0") as ledger:
            first, second = asyncio.run(run(ledger))
            assert [*(first.prompt_logprobs or ())] == [*(second.prompt_logprobs or ())] == [-0.5, -2.0]
            assert ledger.common is ledger.common
    finally:
        host.close()
    assert len(engine.asked) == 1


def test_an_engine_that_scores_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="without the prompt's log-probabilities"):
        scored(ScriptedEngine(lambda request: Completion("hello")), tmp_path, "a")


def test_a_score_and_an_answer_have_keys_of_their_own() -> None:
    assert call_key("m", Request("a")) != call_key("m", Request("a", score=True))


def test_a_row_s_question_differs_by_the_row_alone() -> None:
    asked = Request("a", Sampling(max_tokens=3), 7, "b", ("c",), "d", True, True)
    assert asked.of_row(1, 2, "r") == asked._replace(turn=1, more=2, row="r")
    assert call_key("m", asked.of_row(1, 2, "r")) == call_key("m", asked)


FAILS = EngineError("the server answers 500", kind="refused", retry=True)
NAN, ABOVE = (Completion("", logprobs={"A": value, "B": -1.0}) for value in (math.nan, 0.7))
SCORED_NAN = Completion("", prompt_logprobs=(-1.0, math.nan))
Asking = Callable[[LedgeredLLM], Awaitable[Any]]


def row_asking(engine: ScriptedEngine, folder: Path, ask: Asking, retries: int = 3) -> Any:
    """Return what a row that asks by `ask` gets, or the error."""

    async def run() -> Any:
        with Ledger(folder, "n") as ledger:
            async with EngineClient([LocalLink(host)]) as client:
                return await ask(LedgeredLLM(client, ledger, Asker("e", 1, "m", retries=retries), "a", Tally()))

    host = EngineHost(lambda: engine)
    try:
        return asyncio.run(run())
    except EngineError as error:
        return error
    finally:
        host.close()


async def three_times(llm: LedgeredLLM) -> list[str]:
    return [(await llm.chat(SAID, sample=n)).text for n in range(3)]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_row_has_its_retries_once_whatever_it_asks(tmp_path: Path, retries: int) -> None:
    engine = ScriptedEngine(lambda request: FAILS)
    found = row_asking(engine, tmp_path, three_times, retries)
    assert isinstance(found, EngineError)
    assert len(engine.asked) == retries + 1
    fails_once = ScriptedEngine(lambda request: FAILS if len(fails_once.asked) % 2 else Completion("hello"))
    found = row_asking(fails_once, tmp_path / "again", three_times, retries)
    assert len(fails_once.asked) - retries <= 3
    assert (found == ["hello"] * 3) == (retries >= 3)


@pytest.mark.parametrize(
    ("answer", "ask"),
    [
        (NAN, lambda llm: llm.choose(SAID, ["A", "B"])),
        (ABOVE, lambda llm: llm.choose(SAID, ["A", "B"])),
        (SCORED_NAN, lambda llm: llm.score(SAID)),
    ],
)
def test_a_log_probability_that_is_none_is_a_failure_and_never_kept(tmp_path: Path, answer: Completion, ask: Asking) -> None:
    found = row_asking(ScriptedEngine(lambda request: answer), tmp_path, ask, 1)
    assert isinstance(found, EngineError)
    assert (found.kind, found.retry) == ("bad_answer", True)
    with Ledger(tmp_path, "n") as ledger:
        assert len(ledger) == 0


def test_one_that_was_kept_before_is_asked_again(tmp_path: Path) -> None:
    seen = ScriptedEngine(lambda request: Completion("", prompt_logprobs=(-1.0,)))
    row_asking(seen, tmp_path, lambda llm: llm.score(SAID))
    with Ledger(tmp_path, "n") as ledger:
        ledger.append(call_key("m", seen.asked[0]), {"text": "", "prompt_logprobs": [math.nan]})
    again = ScriptedEngine(lambda request: Completion("", prompt_logprobs=(-2.0,)))
    assert list(row_asking(again, tmp_path, lambda llm: llm.score(SAID)).prompt_logprobs) == [-2.0]
