"""One engine in a thread of its own, serving several clients through mailboxes.

Owns the engine's thread, from its start on: an engine that computes on a CPU in two threads has a pool of OpenMP threads for
each, and more threads than cores wait asleep. Knows nothing of Ray: the cluster wraps it in an actor, tests use it as it is.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Cancelling, Completion, Controlled, Engine, Request

_ANY = 1 << 30
Batch = list[tuple[int, Request]]
Answers = list[tuple[int, Answer]]
KEPT = 1024
"""Answers that are kept for a client whose process may die before it has written them down."""
CLIENTS = 8
"""For how many clients, the last ones, they are kept."""


class EngineHost:
    """Runs an engine's loop and hands each client its own answers.

    A client that begins again, because its process died, gets a new session: its ids start anew. What its old session asked and
    the new one asks, too, isn't computed again: answers that were last given are kept, and what is being computed goes on.

    Raises:
        EngineError: the engine couldn't be started (from the constructor), or its loop broke (from `submit` and `collect`).
    """

    def __init__(self, start: Callable[[], Engine]) -> None:
        self._inbox: deque[tuple[str, str, Batch, Sequence[str], float]] = deque()
        self._dropped: deque[tuple[str, str, int]] = deque()
        self._outbox: dict[str, Answers] = defaultdict(list)
        self._sessions: dict[str, str] = {}
        self._owner: dict[int, tuple[str, str, int, Request]] = {}
        self._given: dict[str, deque[tuple[str, Request, Answer]]] = {}
        self._left: dict[str, _Left] = {}
        self._next = 0
        self._broken: EngineError | None = None
        self._open = True
        self._inbox_filled = threading.Event()
        self._outbox_filled = threading.Condition()
        started: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._live, args=(start, started), name="engine", daemon=True)
        self._thread.start()
        self._engine = started.result()
        self.capacity = self._engine.capacity
        self.cancels = isinstance(self._engine, Cancelling)
        self._asked: Mapping[str, Any] = {}

    def control(self, asked: Mapping[str, Any]) -> None:
        """Rest where `paused`, hold no more calls than `concurrency` in the engine, spend no more than the `max_*`."""
        self._asked = asked
        self.capacity = int(asked.get("concurrency") or self._engine.capacity)
        if isinstance(self._engine, Controlled):
            self._engine.control(asked)
        self._inbox_filled.set()

    def begin(self, client: str) -> str:
        """Return the name of a new session of a client, and forget its earlier one."""
        with self._outbox_filled:
            self._sessions[client] = session = uuid.uuid4().hex
            self._outbox.pop(client, None)
        return session

    def submit(self, client: str, session: str, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Queue a client's requests under its own ids; the rows that are `over` were to ask on, and won't."""
        self._check(client, session)
        self._inbox.append((client, session, list(requests), over, time.monotonic()))
        self._inbox_filled.set()

    def cancel(self, client: str, session: str, numbers: Sequence[int]) -> None:
        """Drop a client's requests, by its own ids: their answers are handed out to nobody."""
        self._dropped += [(client, session, number) for number in numbers]
        self._inbox_filled.set()

    def collect(self, client: str, session: str, timeout_s: float) -> Answers:
        """Return what has finished for this client, waiting at most `timeout_s` for the first answer."""
        with self._outbox_filled:
            self._outbox_filled.wait_for(lambda: self._outbox.get(client) or self._broken, timeout_s)
            answers = self._outbox.pop(client, []) if self._sessions.get(client) == session else []
        if not answers:
            self._check(client, session)
        return answers

    @property
    def waiting(self) -> str:
        """Whom the engine has long been waiting for."""
        return "`caiflow ctl RUN resume`" if self._asked.get("paused") else self._engine.waiting

    def idle(self) -> bool:
        """Tell whether it has nothing to compute."""
        return not (self._inbox or self._owner)

    def hangs_for_s(self, patience_s: float, times: float = 1.0) -> float:
        """Return for how long the engine has been at one piece of work, in seconds, where that is too long; else 0."""
        return self._engine.pulse.hangs_for_s(patience_s, times)

    def close(self) -> None:
        """End the loop and free the engine."""
        self._open = False
        self._inbox_filled.set()
        self._thread.join(timeout=30)
        self._engine.close()

    def _check(self, client: str, session: str) -> None:
        if self._broken is not None:
            raise self._broken
        if self._sessions.get(client) != session:
            raise EngineError("engine: it was started again and doesn't know this session", kind="engine_lost", retry=True)

    def _live(self, start: Callable[[], Engine], started: Future[Engine]) -> None:
        try:
            engine = start()
        except BaseException as error:  # whatever it is, the constructor's caller is the one to hear of it
            started.set_exception(error)
            return
        started.set_result(engine)
        self._loop(engine)

    def _loop(self, engine: Engine) -> None:
        try:
            while self._open:
                engine.pulse.beat()
                self._admit(engine)
                while self._open and self._inbox_filled.wait(engine.gate.wait_s() if engine.gate else 0.0):
                    self._admit(engine)
                if self._owner:
                    engine.pulse.beat()
                    self._deliver(engine.step())
                else:
                    engine.pulse.rest()
                    self._inbox_filled.wait(timeout=1.0)
        except Exception as error:
            broken = error if isinstance(error, EngineError) else None
            self._broken = broken or EngineError(f"engine: its loop broke: {error!r}", kind="engine_lost", retry=True)
            with self._outbox_filled:
                self._outbox_filled.notify_all()

    def _admit(self, engine: Engine) -> None:
        self._inbox_filled.clear()
        while self._inbox and (room := self._room()) > 0:
            client, session, requests, over, at = self._inbox.popleft()
            if session != self._sessions.get(client):
                continue  # nobody waits for it any more
            if len(requests) > room:
                self._inbox.appendleft((client, session, requests[room:], over, at))
                requests, over = requests[:room], ()
            batch, left = [], self._left_to(client, session)
            for own_id, request in requests:
                known = left.take(request, self._owner)
                if isinstance(known, int):
                    self._owner[known] = (client, session, own_id, request)
                elif known is not None:
                    self._hand_out(client, session, own_id, known)
                else:
                    self._owner[self._next] = (client, session, own_id, request)
                    batch.append((self._next, request))
                    self._next += 1
            if engine.gate:
                engine.gate.sent(at)
            engine.submit(batch)
            if engine.gate:
                engine.gate.over(over)
        while self._dropped:
            self._drop(engine, *self._dropped.popleft())

    def _drop(self, engine: Engine, client: str, session: str, own_id: int) -> None:
        """Have the engine drop a request; one that can't still computes it, for nobody."""
        for asker, of, batch, *_ in self._inbox:
            if (asker, of) == (client, session):
                batch[:] = [one for one in batch if one[0] != own_id]
        for number, (asker, of, own, request) in list(self._owner.items()):
            if (asker, of, own) == (client, session, own_id):
                self._owner[number] = ("", "", own, request)
                if isinstance(engine, Cancelling):
                    engine.cancel(number)

    def _room(self) -> int:
        """Return how many more calls the engine may hold."""
        if self._asked.get("paused"):
            return 0
        most = self._asked.get("concurrency")
        return int(most) - len(self._owner) if most else _ANY

    def _deliver(self, finished: Answers) -> None:
        if not finished:
            return
        for number, answer in finished:
            client, session, own_id, request = self._owner.pop(number)
            if isinstance(answer, Completion) and client:
                self._keep(client, session, request, answer)
            self._hand_out(client, session, own_id, answer)

    def _keep(self, client: str, session: str, request: Request, answer: Answer) -> None:
        """Keep an answer for a session to come, or the present one where it came too late for an earlier one."""
        self._given.setdefault(client, deque(maxlen=KEPT)).append((session, request, answer))
        if client in self._left and self._left[client].session != session:
            self._left[client].add(request, answer)
        if len(self._given) > CLIENTS:
            oldest = next(iter(self._given))
            del self._given[oldest]
            self._left.pop(oldest, None)

    def _hand_out(self, client: str, session: str, own_id: int, answer: Answer) -> None:
        with self._outbox_filled:
            if session == self._sessions.get(client):
                self._outbox[client].append((own_id, answer))
            self._outbox_filled.notify_all()

    def _left_to(self, client: str, session: str) -> _Left:
        """Return what earlier sessions of a client left to this one."""
        if client not in self._left or self._left[client].session != session:
            left = self._left[client] = _Left(session)
            for before, request, answer in self._given.get(client, ()):
                if before != session:
                    left.add(request, answer)
            for number, (owner, before, _, request) in self._owner.items():
                if owner == client and before != session:
                    left.add(request, number)
        return self._left[client]


class _Left:
    """What earlier sessions of a client left to its present one: answers, and the numbers of requests that are computed."""

    def __init__(self, session: str) -> None:
        self.session = session
        self._known: dict[str, list[Answer | int]] = {}

    def add(self, request: Request, known: Answer | int) -> None:
        """Take note of what became of a request."""
        self._known.setdefault(_content(request), []).append(known)

    def take(self, request: Request, computed: Container[int]) -> Answer | int | None:
        """Return what there is for a request, once; a number only while it is `computed`."""
        known = self._known.get(_content(request), []) if self._known else []
        while known:
            found = known.pop()
            if not isinstance(found, int) or found in computed:
                return found
        return None


def _content(request: Request) -> str:
    """Return what decides a request's answer."""
    return repr(request._replace(turn=-1, more=0, row=""))


class LocalLink:
    """A link to an engine host in this process."""

    def __init__(self, host: EngineHost, client: str = "local") -> None:
        self._host = host
        self._client = client
        self._session = ""
        self.capacity = host.capacity
        self.waiting = ""

    async def open(self) -> None:
        """Begin a session; the host has loaded."""
        self._session = self._host.begin(self._client)

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Send requests, and say which rows won't ask on."""
        self._host.submit(self._client, self._session, requests, over)

    @property
    def own(self) -> bool:
        """Whether nobody is paid for its calls."""
        return self._host.cancels

    async def cancel(self, numbers: Sequence[int]) -> None:
        """Have it drop calls."""
        self._host.cancel(self._client, self._session, numbers)

    async def collect(self) -> list[tuple[int, Answer]]:
        """Wait a while for answers."""
        answers = await asyncio.to_thread(self._host.collect, self._client, self._session, 0.5)
        self.waiting = self._host.waiting
        return answers

    async def revive(self) -> None:
        """Refuse: an engine in this process doesn't come back."""
        raise EngineError("engine: lost, and it runs in this process", "start it again", kind="engine_lost")
