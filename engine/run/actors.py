"""What runs in Ray's processes: workers for units, hosts for engines, and the link from the one to the other.

Owns what is said between the processes. Starts and places none of them: that is the cluster's.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.errors import AskAnewError, CaiflowError, EngineError, StepError
from caiflow.engine.llm.base import Answer, ModelSource, Request
from caiflow.engine.llm.client import COLLECT_S, LinkLost
from caiflow.engine.llm.host import EngineHost
from caiflow.engine.run.units import StepResult, Unit

REVIVE_S = 600.0
"""Longest wait for a lost engine to be loaded again."""


class Worker:
    """Runs in a process of its own; one unit at a time, polled from another thread."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque()
        self._imports = threading.Lock()
        self._worked = False

    def warm(self, modules: Sequence[str]) -> None:
        """Import ahead of need what takes seconds; never beside work, since libraries that load lazily can't stand it."""
        with self._imports:
            if not self._worked:
                _import(modules)

    def run(self, unit: Unit) -> Mapping[str, StepResult]:
        """Carry out one unit; errors come back as text that the user can read."""
        with self._imports:
            self._worked = True
        try:
            return unit.run(self._events.append)
        except CaiflowError:
            raise
        except Exception as error:
            import traceback

            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "  # operators say with it what is wrong
            raise StepError(f"{name}{error}\n{traceback.format_exc()}") from None

    def poll(self) -> list[dict[str, Any]]:
        """Return the progress since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


class EngineActor:
    """An engine host in a process of its own; loads with the first `ready`, also after Ray restarted the process."""

    def __init__(self) -> None:
        self._host: EngineHost | None = None
        self._lock = threading.Lock()
        self._seconds = 0.0

    def warm(self, modules: Sequence[str]) -> None:
        """Import ahead of need what takes seconds."""
        with self._lock:
            if self._host is None:
                _import(modules)

    def ready(self, source: ModelSource) -> tuple[int, str, float]:
        """Return capacity, kind of engine and load time in seconds, loading where that's still to do."""
        from caiflow.engine.llm.load import choose_kind, load_engine

        with self._lock:
            if self._host is None:
                started = time.monotonic()
                self._host = EngineHost(lambda: load_engine(source))
                self._seconds = time.monotonic() - started
            return self._host.capacity, choose_kind(source), self._seconds

    def begin(self, client: str) -> str:
        """Begin a session of a client."""
        return self._loaded().begin(client)

    def submit(self, client: str, session: str, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue requests."""
        self._loaded().submit(client, session, requests)

    def collect(self, client: str, session: str, timeout_s: float) -> list[tuple[int, Answer]]:
        """Wait for answers."""
        return self._loaded().collect(client, session, timeout_s)

    def _loaded(self) -> EngineHost:
        if self._host is None:
            raise EngineError("engine: its process was started again and hasn't loaded yet", kind="engine_lost", retry=True)
        return self._host


class RayLink:
    """A link to an engine actor; travels to the worker that uses it, and again to the next one where that worker dies."""

    def __init__(self, actor: Any, source: ModelSource, client: str) -> None:
        self._actor = actor
        self._source = source
        self._client = client
        self._session = ""
        self.capacity = 1

    async def open(self) -> None:
        """Begin a session and wait until the engine has loaded. Raises EngineError."""
        self.capacity, *_ = await self._call("ready", self._source)
        self._session = await self._call("begin", self._client)

    async def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Send requests."""
        await self._call("submit", self._client, self._session, requests)

    async def collect(self) -> list[tuple[int, Answer]]:
        """Wait a while for answers."""
        answers: list[tuple[int, Answer]] = await self._call("collect", self._client, self._session, COLLECT_S)
        return answers

    async def revive(self) -> None:
        """Wait until Ray has restarted the engine's process and the engine has loaded again."""
        until = time.monotonic() + REVIVE_S
        while True:
            try:
                await self.open()
                return
            except LinkLost as loss:
                if time.monotonic() > until:
                    raise EngineError(f"engine: lost for good; {loss}", kind="engine_lost") from loss
                await asyncio.sleep(0.5)

    async def _call(self, method: str, *arguments: Any) -> Any:
        import ray.exceptions as ray_errors

        try:
            return await getattr(self._actor, method).remote(*arguments)
        except ray_errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EngineError) and cause.kind == "engine_lost" and cause.retry:
                raise LinkLost(str(cause)) from None
            if isinstance(cause, EngineError | AskAnewError):
                raise cause from None
            raise EngineError(f"engine: {cause!r}", kind="engine") from None
        except ray_errors.ActorUnavailableError as error:
            raise LinkLost(first_line(error)) from None
        except ray_errors.ActorDiedError as error:
            raise EngineError(
                f"engine: its process died too often ({first_line(error)})",
                "it may be out of memory: see `caiflow doctor`",
                kind="engine_lost",
            ) from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
