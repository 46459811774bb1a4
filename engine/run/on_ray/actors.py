"""What runs in Ray's processes: workers for units, hosts for engines, and the link from the one to the other.

Owns what is said between the processes. Starts and places none of them: that is the cluster's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from caiflow.engine.errors import AskAnewError, CaiflowError, EngineError, StepError, first_line
from caiflow.engine.llm.base import Answer, LinkLost, ModelSource, Request
from caiflow.engine.llm.client import COLLECT_S
from caiflow.engine.llm.host import EngineHost
from caiflow.engine.machine import forget_peaks, peaks
from caiflow.engine.run.on_ray.deaths import death, place, without_module
from caiflow.engine.run.units import StepResult, Unit
from caiflow.engine.store.file_digests import file_sizes
from caiflow.engine.training.parallel.workers import Seat, rank, taking_part

HANGS_S = 40.0
"""How long the process of a loaded engine may leave a call unanswered (it has threads for calls, whatever it computes), and how
long the engine may at least be at one piece of work."""
LOADING_HANGS_S = 180.0
"""The same while it loads: importing a library may keep all threads from running for long."""
STRETCH = 4.0
"""How many times as long an engine may take that was begun again because it seemed to hang: it may only have been slow."""
REVIVE_S = 3600.0
"""Longest wait for a lost engine to be loaded again: a node for it may have to come first."""


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

    def meet(self) -> Seat:
        """Return where this process may take part in a training of several."""
        import ray
        import ray.util

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = int(probe.getsockname()[1])
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return Seat(_node(), ray.util.get_node_ip_address(), port, tuple(map(str, gpus)))

    def run(self, unit: Unit, mine: int = 0, *seats: Seat) -> Mapping[str, StepResult]:
        """Carry out one unit, or one process's part of it: the first alone tells of it, and of the others only counts are had.

        Errors come back as text that the user can read.
        """
        with self._imports:
            self._worked = True
        anew = forget_peaks()
        try:
            with taking_part(seats, mine) if seats else contextlib.nullcontext():
                results = unit.run(_unheard if mine else self._events.append)
            most = peaks() if anew else {}
            if mine:
                return {name: StepResult(counts=one.counts, peaks=most) for name, one in results.items()}
            files = {name: file_sizes(one.staged) if one.staged else {} for name, one in results.items()}
            return {name: replace(one, files=files[name], peaks=most) for name, one in results.items()}
        except CaiflowError:
            raise
        except ModuleNotFoundError as error:
            raise StepError(*without_module(str(error.name), f" on node {self.place()}")) from None
        except Exception as error:
            import traceback

            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "  # operators say with it what is wrong
            raise StepError(f"{name}{error}\n{traceback.format_exc()}") from None

    def node(self) -> str:
        """Return the id of the node that this process is on."""
        return _node()

    def moved(self, name: str) -> None:
        """Hear that an engine's process has a successor."""
        note_move(name)

    def place(self) -> str:
        """Return the node that this process is on, by its name and address."""
        import ray.util

        return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"

    def poll(self) -> list[dict[str, Any]]:
        """Return the progress since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]


def _unheard(_told: Mapping[str, Any]) -> None:
    """Take what a process tells that isn't the first."""


def _import(modules: Sequence[str]) -> None:
    from caiflow.engine.llm.local.lean import import_lean

    new = "torch" not in sys.modules
    with contextlib.suppress(ImportError):
        import_lean(modules)
    if new:  # never where there may be a model, which would be kept for good, too
        gc.freeze()


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

    def submit(self, client: str, session: str, requests: Sequence[tuple[int, Request]], over: Sequence[str]) -> None:
        """Queue requests, and say which rows won't ask on."""
        self._loaded().submit(client, session, requests, over)

    def cancel(self, client: str, session: str, numbers: Sequence[int]) -> None:
        """Drop requests."""
        self._loaded().cancel(client, session, numbers)

    def collect(
        self, client: str, session: str, timeout_s: float, patience_s: float, times: float
    ) -> tuple[list[tuple[int, Answer]], str]:
        """Wait for answers; return them, and for whom the engine has waited for long.

        Raises:
            EngineError: kind `engine_hangs`: it has been at one piece of work for too long (see pulse.py).
        """
        host = self._loaded()
        found = host.collect(client, session, timeout_s)
        if not found and (hangs_s := host.hangs_for_s(patience_s, times)):
            raise EngineError(f"it has been at one step for {hangs_s:.0f} s", kind="engine_hangs")
        return found, host.waiting

    def control(self, asked: Mapping[str, Any]) -> None:
        """Rest, go on, or take other limits, once it has loaded."""
        if self._host is not None:
            self._host.control(asked)

    def idle(self) -> bool:
        """Tell whether it has nothing to compute."""
        return self._host is None or self._host.idle()

    def node(self) -> str:
        """Return the id of the node that this process is on."""
        return _node()

    def process(self) -> tuple[str, int]:
        """Return its machine and the number of its process there, in no time whatever it does."""
        return _machine(), os.getpid()

    def _loaded(self) -> EngineHost:
        if self._host is None:
            raise EngineError("engine: its process was started again and hasn't loaded yet", kind="engine_lost", retry=True)
        return self._host


_MOVED: set[str] = set()
"""The names of engines' processes whose successors are ready, as far as this process has heard."""


def note_move(name: str) -> None:
    """Have this process's links to an engine's process go over to its successor, once they are answered what they asked."""
    _MOVED.add(name)


class RayLink:
    """A link to an engine actor; travels to the worker that uses it, and again to the next one where that worker dies.

    By its name the link goes over to the process that is begun in its place, where Ray wouldn't begin it again for long.
    """

    def __init__(self, actor: Any, name: str, source: ModelSource, client: str) -> None:
        self._actor = actor
        self._name = name
        self._source = source
        self._client = client
        self._asker = ""
        self._session = ""
        self.capacity = 1
        self.waiting = ""
        self.process = "", 0
        """The engine's machine, and its process there."""
        self.hangs_s = HANGS_S
        self._hung: set[tuple[str, int]] = set()
        self._hung_last = ""

    async def open(self) -> None:
        """Begin a session and wait until the engine has loaded. Raises EngineError."""
        self._follow()
        self.process = await self._call("process", patience_s=None)
        loading = asyncio.ensure_future(self._call("ready", self._source, patience_s=None))
        while not (await asyncio.wait({loading}, timeout=self.hangs_s))[0]:
            await self._call("process", patience_s=LOADING_HANGS_S)
        self.capacity, *_ = loading.result()
        self._asker = f"{self._client}-{rank()}"  # each of a training's processes has answers of its own
        self._session = await self._call("begin", self._asker)
        self.waiting = ""

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Send requests, and say which rows won't ask on."""
        await self._call("submit", self._asker, self._session, requests, over)

    @property
    def own(self) -> bool:
        """Whether nobody is paid for its calls."""
        return not self._source.served

    async def cancel(self, numbers: Sequence[int]) -> None:
        """Have it drop calls."""
        await self._call("cancel", self._asker, self._session, numbers)

    async def collect(self) -> list[tuple[int, Answer]]:
        """Wait a while for answers."""
        patience_s = COLLECT_S + self.hangs_s
        limits = COLLECT_S, self.hangs_s, STRETCH if self._hung else 1.0
        answers, self.waiting = await self._call("collect", self._asker, self._session, *limits, patience_s=patience_s)
        if answers:
            self._hung.clear()
        found: list[tuple[int, Answer]] = answers
        return found

    @property
    def moves(self) -> bool:
        """Whether its engine is in another process from now on."""
        return self._name in _MOVED

    def _follow(self) -> None:
        while self.moves and self._goes_over(self._actor):
            pass

    def __getstate__(self) -> dict[str, Any]:
        self._follow()
        return self.__dict__

    async def revive(self) -> None:
        """Wait until Ray has restarted the engine's process and the engine has loaded again."""
        begun = time.monotonic()
        while True:
            self.waiting = f"its engine, which was lost and is begun again, for {time.monotonic() - begun:.0f} s"
            try:
                await self.open()
                return
            except LinkLost as loss:
                if time.monotonic() > begun + REVIVE_S:
                    raise EngineError(f"engine: lost for good; {loss}", kind="engine_lost") from loss
                await asyncio.sleep(0.5)

    async def _call(self, method: str, *arguments: Any, patience_s: float | None = HANGS_S) -> Any:
        """Return what the engine's process says; one that says nothing for too long is ended, and so begun again by Ray."""
        import ray.exceptions as ray_errors

        process, actor = self.process, self._actor

        async def answer() -> Any:
            return await getattr(actor, method).remote(*arguments)

        try:
            return await asyncio.wait_for(answer(), patience_s)
        except TimeoutError:
            raise self._ended(process, f"it hasn't answered for {patience_s:g} s") from None
        except ray_errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EngineError) and cause.kind == "engine_hangs":
                raise self._ended(process, str(cause)) from None
            if isinstance(cause, EngineError) and cause.kind == "engine_lost" and cause.retry:
                raise LinkLost(str(cause)) from None
            if isinstance(cause, EngineError) and cause.kind == "load" and process[0] != _machine():
                raise EngineError(f"{cause.message}{place(error)}", cause.hint, kind="load") from None
            if isinstance(cause, EngineError | AskAnewError):
                raise cause from None
            why = death(error)
            raise EngineError(f"engine: {cause!r}" if why.again else why.why, "" if why.again else why.hint) from None
        except ray_errors.ActorUnavailableError as error:
            raise LinkLost(first_line(error)) from None
        except ray_errors.ActorDiedError as error:
            if self._goes_over(actor):
                raise LinkLost("its node doesn't answer") from None
            why = death(error)
            hint = f"it hung: {self._hung_last}" if self._hung_last else why.hint
            told = f"its process died too often: {why.why}" if why.again else why.why
            raise EngineError(f"engine: {told}", hint, kind="engine_lost") from None

    def _goes_over(self, died: Any) -> bool:
        """Take the process that was begun in place of one, once for all calls that it left; return whether there is any."""
        import ray

        if self._actor is not died:
            return True
        after = successor(self._name)
        try:
            self._actor = ray.get_actor(after)
        except ValueError:
            return False
        self._name = after
        return True

    def _ended(self, process: tuple[str, int], why: str) -> Exception:
        """End a process that hangs; return the loss, or the error where the one begun instead of it hangs, too."""
        self._hung.add(process)
        self._hung_last = why
        self._end(process)
        if len(self._hung) == 1:
            return LinkLost(f"its process hangs: {why}")
        return EngineError(
            f"engine: it hangs, and hung again once it was begun again: {why}",
            "make its batches smaller (max_num_batched_tokens in `engine_args`), or take another `engine`",
            kind="engine_lost",
        )

    def _end(self, process: tuple[str, int]) -> None:
        """End a process so that Ray begins it again, and never the one that Ray has begun since."""
        import ray

        machine, pid = process
        if machine != _machine():
            ray.kill(self._actor, no_restart=False)
            return
        with contextlib.suppress(OSError):  # it has ended
            if "EngineActor" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def successor(name: str) -> str:
    """Return the name of the process that takes the place of an engine's: ENGINE/0, ENGINE/1 and so on."""
    engine, _, number = name.rpartition("/")
    return f"{engine}/{int(number) + 1}"


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _machine() -> str:
    """Return what tells this machine, or container, from others; nothing does where there is no /proc."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex
