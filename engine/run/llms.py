"""Models as an operator in a worker asks them for tables of rows: each call is kept in the ledger, and progress is told.

Asks engines through their clients; knows no Ray, and no operator by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from caiflow.engine.errors import AskAnewError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import Ask, LLMs, Operator
from caiflow.engine.rows.columns import Row

if TYPE_CHECKING:
    from caiflow.engine.llm.base import Link
    from caiflow.engine.llm.client import EngineClient

T = TypeVar("T")

OF_CALLS = ("calls", "reused_calls", "prompt_tokens", "completion_tokens")
"""What a step's counts have of its calls."""

Report = Callable[[dict[str, Any]], None]
"""Takes the fields of a `step_progress` event, with its `step`; or another event, with its name under `event`."""


class LedgeredLLMs(LLMs):
    """Asks models for a table of rows; every call is kept in the ledger."""

    def __init__(
        self,
        operator: Operator[Any],
        models: Mapping[str, ModelSource],
        clients: Mapping[str, EngineClient],
        ledger_dir: Path,
    ) -> None:
        from caiflow.engine.flow.pace import Pace
        from caiflow.engine.flow.row_llm import Tally
        from caiflow.engine.store.ledger import Ledger, ledger_name

        self._operator = operator
        self._models = models
        self._clients = clients
        self._tally = Tally()
        self._expected = 0
        self._slots: dict[str, asyncio.Semaphore] = {}
        self.pace = Pace([operator.name])
        self._ledgers = {name: Ledger(ledger_dir, ledger_name(operator.name, model.identity)) for name, model in models.items()}

    async def map(self, label: str, model: str, rows: Sequence[Row], ask: Ask) -> list[Row]:
        """Return `await ask(row, llm)` for each row, in order."""
        from caiflow.engine.flow.row_llm import Asker, LedgeredLLM

        client = self._clients[model]
        slots = self._slots.setdefault(model, asyncio.Semaphore(2 * client.capacity))
        self._tally.total += max(0, len(rows) - self._expected)
        self._expected = max(0, self._expected - len(rows))

        asked = self._models[model]
        asker = Asker(f"{self._operator.name}:{label}", self._operator.context.seed, asked.identity, served=asked.served)

        async def one(row: Row) -> Row:
            async with slots:
                llm = LedgeredLLM(client, self._ledgers[model], asker, str(row["uid"]), self._tally)
                self.pace.begin(self._operator.name)
                answer: Row = await ask(row, llm)
                self.pace.end(self._operator.name)
            self._tally.done += 1
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(row)) for row in rows]
        except BaseExceptionGroup as errors:
            raise (errors.subgroup(AskAnewError) or errors).exceptions[0] from None
        return [task.result() for task in tasks]

    def expect(self, rows: int) -> None:
        """Count rows that `map` will be asked for as still to come."""
        self._tally.total += rows
        self._expected += rows

    def progress(self) -> dict[str, Any]:
        """Return the fields of a `step_progress` event; nothing before the first rows."""
        from caiflow.engine.flow.stream import progress_fields

        if not self._tally.total:
            return {}
        told = " and ".join(filter(None, (client.waiting for client in self._clients.values())))
        busy_s = self.pace.busy_s(self._operator.name)
        speed = self._tally.completion_tokens / busy_s if busy_s else None
        return {**progress_fields(self._tally), "waiting": told or None, "tokens_per_second": speed}

    def counts(self) -> dict[str, int]:
        """Return the calls that were made and those that the ledger spared, and the tokens."""
        return {name: getattr(self._tally, name) for name in OF_CALLS}

    def close(self) -> None:
        """Bring everything to the disk."""
        for ledger in self._ledgers.values():
            ledger.close()


class FromAnyLoop(LLMs):
    """Asks in the event loop of a thread of its own, for those who have another: a training's, say, that comes and goes."""

    def __init__(self, llms: LLMs, loop: asyncio.AbstractEventLoop) -> None:
        self._llms = llms
        self._loop = loop

    async def map(self, label: str, model: str, rows: Sequence[Row], ask: Ask) -> list[Row]:
        """Return `await ask(row, llm)` for each row, in order."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._llms.map(label, model, rows, ask), self._loop))

    def expect(self, rows: int) -> None:
        """Count rows that `map` will be asked for as still to come."""
        self._loop.call_soon_threadsafe(self._llms.expect, rows)


@contextlib.contextmanager
def asked_beside(
    step: str, make: Callable[[Mapping[str, EngineClient]], LedgeredLLMs], links: Mapping[str, Sequence[Link]], report: Report
) -> Iterator[tuple[LLMs, LedgeredLLMs]]:
    """Ask models beside work that isn't a coroutine: yield them for any event loop, and what counts their calls."""
    from caiflow.engine.llm.client import EngineClient

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="asking", daemon=True)
    thread.start()

    def within(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    stack = AsyncExitStack()

    async def begin() -> LedgeredLLMs:
        report({"step": step, "doing": f"waiting for {', '.join(links)}"})
        clients = {name: await stack.enter_async_context(EngineClient(found)) for name, found in links.items()}
        llms = make(clients)
        stack.callback(llms.close)
        stack.push_async_callback(stop, asyncio.create_task(_watch_engines(step, clients, report)))
        return llms

    try:
        llms = within(begin())
        yield FromAnyLoop(llms, loop), llms
    finally:
        within(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _watch_engines(step: str, clients: Mapping[str, EngineClient], report: Report) -> None:
    """Report lost engines, and whom the others wait for, until cancelled."""
    told = ""
    while True:
        tell_lost(clients, report)
        waiting = " and ".join(filter(None, (client.waiting for client in clients.values())))
        if waiting != told:
            told = waiting
            report({"step": step, "waiting": waiting or None})
        await asyncio.sleep(0.25)


async def watch_calls(step: str, llms: LedgeredLLMs, clients: Mapping[str, EngineClient], report: Report) -> None:
    """Report progress and lost engines until cancelled."""
    while True:
        tell_lost(clients, report)
        if fields := llms.progress():
            report({"step": step, **fields})
        await asyncio.sleep(0.25)


def tell_lost(clients: Mapping[str, EngineClient], report: Report) -> None:
    """Report which engines were lost, or fell silent, since this was last asked."""
    for name, client in clients.items():
        for said in client.told():
            report({"event": "log", "text": f"{name}: {said}"})


async def stop(task: asyncio.Task[None]) -> None:
    """End a task that would go on for ever."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
