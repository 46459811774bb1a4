"""How many rows are on their way at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Slots:
    """At most `limit` coroutines at once; what one raises is raised to whoever waits next."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lent = 0
        self._running: set[asyncio.Task[None]] = set()
        self._finished = asyncio.Event()
        self._error: BaseException | None = None

    async def __aenter__(self) -> Slots:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def start(self, work: Any) -> None:
        """Begin a coroutine once there is room."""
        while len(self._running) - self._lent >= self._limit:
            await self.one_finished()
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let another have this coroutine's place while it waits for what another run is making."""
        self._lent += 1
        self._finished.set()
        try:
            yield
        finally:
            self._lent -= 1

    async def one_finished(self) -> None:
        """Wait until one has ended, or lends its place."""
        if self._running:
            self._finished.clear()
            await self._finished.wait()
        if self._error is not None:
            raise self._error

    async def all_finished(self) -> None:
        """Wait until all have ended."""
        while self._running:
            await self.one_finished()
        if self._error is not None:
            raise self._error

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._finished.set()
        if not task.cancelled() and task.exception() is not None:
            self._error = self._error or task.exception()
