"""Asking engines from coroutines: requests leave in micro-batches, older rows first, answers come back as they finish.

Owns the balance over replicas, the limit of requests in an engine, and asking again when an engine is lost. Knows no Ray: a
`Link` carries the batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import uuid
from collections import defaultdict
from collections.abc import Coroutine, Sequence

from caiflow.engine.errors import AskAnewError, EngineError
from caiflow.engine.llm.base import Answer, Completion, Link, LinkLost, OwnLink, Request
from caiflow.engine.llm.order.late import Late
from caiflow.engine.llm.order.replicas import Asked, Replica
from caiflow.engine.llm.served.taught import ASK_ANEW

COLLECT_S = 5.0  # one waiting call per engine and client; long, since it returns with the first answer
SILENT_S = 5.0
"""How much longer than that an engine may say nothing before the others have what it was asked: its machine may be frozen."""
LOOK_S = 0.5
"""How often calls are looked for that have been out for much longer than most (`order/late.py`)."""
LATE_S = 20.0
"""How long the engines that are there wait for one more at the start; it comes to them whenever there is room for it."""


class EngineClient:
    """Coroutines ask, the client batches: one per model and worker, used from one event loop.

    A row that is to ask on is at home with the replica that it first asked, which knows the beginning of its prompts. It moves
    only where its home is lost, or has more to do than it can do at once while another has less.

    What a replica had that is lost goes to the others at once, and so does what one has that is silent; whichever answers first
    is heard. One that is lost for good gets no more requests. Only where none is left are requests answered with the error.
    Where none is paid for, a request that takes far longer than most is asked of a second one that has room; it counts once.

    `calls`, `prompt_tokens` and `completion_tokens` count what was answered.
    """

    def __init__(self, links: Sequence[Link], *, engine_retries: int = 5) -> None:
        self._replicas = [Replica(link) for link in links]
        self.capacity = 0
        self._engine_retries = engine_retries
        self._pending: list[Asked] = []
        self._name = uuid.uuid4().hex[:12]
        self._homes: dict[int, tuple[Replica, bool]] = {}
        """By turn, where a row is at home, and whether its last call said that it asks on."""
        self._ids = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._pump_scheduled = False
        self._sending: set[asyncio.Task[None]] = set()
        self._dead: EngineError | None = None
        self._told: list[str] = []
        self.silent_s = SILENT_S
        self.late = Late()
        self._lent: dict[int, Asked] = {}
        self.calls = self.prompt_tokens = self.completion_tokens = 0

    async def __aenter__(self) -> EngineClient:
        late = await self._opened()
        if self._dead is not None:
            raise self._dead
        self._tasks = [asyncio.create_task(self._receive(replica)) for replica in self._replicas]
        self._tasks += late
        if len(self._replicas) > 1 and all(isinstance(one.link, OwnLink) and one.link.own for one in self._replicas):
            self._tasks.append(asyncio.create_task(self._ask_late_ones_twice()))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in [*self._tasks, *self._sending]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._sending, return_exceptions=True)

    @property
    def waiting(self) -> str:
        """Whom its engines have long been waiting for; each is told once."""
        asked = (replica for replica in self._replicas if replica.lost is None and (replica.in_flight or not replica.up))
        told = (replica.link.waiting for replica in asked)
        return " and ".join(dict.fromkeys(filter(None, told)))

    def told(self) -> list[str]:
        """Return what became of replicas since this was last asked, where others go on."""
        told, self._told = self._told, []
        return told

    async def ask(self, request: Request) -> Answer:
        """Return the answer; requests with a lower `turn` overtake waiting ones."""
        if self._dead is not None:
            return self._dead
        if request.turn >= 0:
            request = request.of_row(request.turn, request.more, f"{self._name}:{request.turn}")
        asked = Asked(request, asyncio.get_running_loop().create_future(), (request.turn, next(self._ids)))
        heapq.heappush(self._queue_of(request.turn), asked)
        self._schedule_pump()
        answer = await asked.answer
        if isinstance(answer, Completion):
            self.calls += 1
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens
        return answer

    def over(self, turn: int) -> None:
        """Note that a row asks no more, whatever its last call said."""
        home, asks_on = self._homes.pop(turn, (None, False))
        if home is not None and asks_on and home.up:
            home.over.append(f"{self._name}:{turn}")
            self._schedule_pump()

    def _queue_of(self, turn: int) -> list[Asked]:
        """Return where a row's call waits: for its home, where it has one that gets to it, or for any replica."""
        home, _ = self._homes.get(turn, (None, False))
        if home is None or not home.up:
            return self._pending
        if len(home.in_flight) >= home.link.capacity and any(one.up and one.idle() for one in self._replicas):
            return self._pending
        return home.pending

    def _schedule_pump(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        for replica in (one for one in self._replicas if one.up and one.moves):
            self._leave(replica)
        living = [replica for replica in self._replicas if replica.up]  # one that is up again pumps
        batches: dict[int, list[tuple[int, Request]]] = defaultdict(list)
        for replica in living:
            while replica.pending and replica.room > 0:
                batches[id(replica)].append(self._put(replica, heapq.heappop(replica.pending)))
        while self._pending and living:
            replica = max(living, key=lambda one: one.room)
            if replica.room <= 0:
                break
            asked = heapq.heappop(self._pending)
            if not asked.answer.done():  # by the replica that was silent
                batches[id(replica)].append(self._put(replica, asked))
        for replica in living:
            over, replica.over = replica.over, []
            if over or id(replica) in batches:
                self._spawn(self._send(replica, batches[id(replica)], over))

    def _put(self, replica: Replica, asked: Asked) -> tuple[int, Request]:
        """Take a request for a replica; return it with its number."""
        turn, number = asked.priority
        asked.since = asyncio.get_running_loop().time()
        replica.in_flight[number] = asked
        replica.room -= 1
        replica.busy.set()
        if turn >= 0 and (asked.request.more or turn in self._homes):
            self._homes[turn] = replica, asked.request.more > 0
        return number, asked.request

    async def _ask_late_ones_twice(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            idle = [one for one in self._replicas if one.up and one.idle() and not one.pending]
            if idle and not self._pending and not self.waiting:
                now = asyncio.get_running_loop().time()
                out = {
                    n: (one, asked) for one in self._replicas if one.up for n, asked in one.in_flight.items() if not asked.twice
                }
                room = sum(one.link.capacity - len(one.in_flight) for one in idle)
                for number in self.late.overdue([(n, now - asked.since) for n, (_, asked) in out.items()], room):
                    self._ask_twice(*out[number], idle)

    def _ask_twice(self, replica: Replica, asked: Asked, idle: Sequence[Replica]) -> None:
        """Ask a second replica, the one with most room; the first keeps its place among the row's calls."""
        others = [one for one in idle if one is not replica and one.idle()]
        if not others:
            return
        other = max(others, key=lambda one: one.room)
        asked.twice, other.room = True, other.room - 1
        other.in_flight[asked.priority[1]] = asked
        other.busy.set()
        if not self.late.twice:
            self._told.append("some calls take far longer than most, and are asked of another of its engines, too")
        self.late.twice += 1
        self._spawn(self._send(other, [(asked.priority[1], asked.request._replace(more=0, row=""))], []))

    def _drop_other(self, number: int) -> None:
        """Have a request dropped where it was asked, too."""
        for replica in self._replicas:
            if replica.in_flight.pop(number, None) is not None:
                replica.room += 1
                self._spawn(self._cancel(replica, number))

    async def _cancel(self, replica: Replica, number: int) -> None:
        if isinstance(replica.link, OwnLink):
            with contextlib.suppress(LinkLost, EngineError):  # then it is dropped, too
                await replica.link.cancel([number])

    def _spawn(self, sending: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, replica: Replica, batch: list[tuple[int, Request]], over: list[str]) -> None:
        try:
            await replica.link.submit(batch, over)
        except LinkLost:
            return  # the receiving side sees the same loss and asks everything in flight again
        except Exception as error:
            self._give_up(replica, _as_engine_error(error))

    async def _receive(self, replica: Replica) -> None:
        while replica.lost is None:
            if not replica.in_flight and not replica.moves:
                replica.busy.clear()
                await replica.busy.wait()
            if replica.moves and not replica.in_flight:
                await self._recover(replica)
                continue
            try:
                answers = await self._collected(replica)
            except LinkLost as loss:
                await self._recover(replica, loss)
                continue
            except Exception as error:
                self._give_up(replica, _as_engine_error(error))
                continue
            for number, answer in answers:
                self._finish(replica, number, answer)
            if self._pending or replica.pending or replica.moves:
                self._schedule_pump()

    async def _collected(self, replica: Replica) -> list[tuple[int, Answer]]:
        """Wait for answers of a replica; while it is silent the others have what it was asked, and it gets nothing more."""
        collecting = asyncio.ensure_future(replica.link.collect())
        try:
            while not (await asyncio.wait({collecting}, timeout=COLLECT_S + self.silent_s))[0]:
                if replica.up and any(other.up for other in self._replicas if other is not replica):
                    self._lend(replica)
            answers = collecting.result()
        finally:
            collecting.cancel()
        if not replica.up and replica.lost is None and not replica.moves:
            self._up(replica)
        return answers

    def _leave(self, replica: Replica) -> None:
        """Give a replica that moves nothing more; it follows once it has answered what it has."""
        replica.up = False
        self._wait_anew(replica)
        replica.busy.set()

    def _lend(self, replica: Replica) -> None:
        """Have the others answer what a silent replica was asked; it may yet be the first to."""
        self._told.append(
            f"one of its engines says nothing, for {self.silent_s:g} s too long; the others have what it was asked"
        )
        self._lent.update(replica.in_flight)
        replica.up = False
        self._take_back(replica)

    async def _opened(self) -> list[asyncio.Task[None]]:
        """Wait until the replicas are there, or one is and the others are late; return what waits for those."""
        opening = {asyncio.create_task(self._open(replica)) for replica in self._replicas}
        there: list[int] = []
        try:
            while opening:
                done, opening = await asyncio.wait(
                    opening, timeout=LATE_S if there else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
                there = [replica.link.capacity for replica in self._replicas if replica.up]
                if not done:
                    self._told.append(f"{len(opening)} of its engines aren't there yet, the others begin without")
                    break
        except BaseException:
            for task in opening:
                task.cancel()
            raise
        self.capacity = sum(there) + len(opening) * max(there, default=0)
        return [asyncio.create_task(self._join(task)) for task in opening]

    async def _join(self, opening: asyncio.Task[None]) -> None:
        """Take in a late replica."""
        try:
            await opening
        except AskAnewError as error:
            self._told.append(f"one of its engines doesn't come: {error}")
        finally:
            opening.cancel()

    def _up(self, replica: Replica) -> None:
        replica.up, replica.room = True, 2 * replica.link.capacity
        self._schedule_pump()

    async def _open(self, replica: Replica) -> None:
        """Wait until a replica is there, and give up one that won't be."""
        try:
            try:
                await replica.link.open()
            except LinkLost:
                await replica.link.revive()
        except EngineError as error:  # any other goes to whoever opens the client, whom nothing keeps waiting
            self._give_up(replica, error)
            return
        self._up(replica)

    async def _recover(self, replica: Replica, loss: LinkLost | None = None) -> None:
        replica.up = False
        self._take_back(replica, loss)
        try:
            await replica.link.revive()
        except Exception as error:
            self._give_up(replica, _as_engine_error(error))
            return
        self._up(replica)

    def _take_back(self, replica: Replica, loss: LinkLost | None = None) -> None:
        """Have what a replica had asked anew; not what was lost too often."""
        left, replica.in_flight = replica.in_flight, {}
        self._wait_anew(replica)
        for number, asked in left.items():
            if asked.twice and any(number in other.in_flight for other in self._replicas):
                continue
            asked.tries += loss is not None
            if asked.tries <= self._engine_retries:
                heapq.heappush(self._pending, asked)
            elif not asked.answer.done():
                error = EngineError(f"engine: lost {self._engine_retries} times; {loss}", kind="engine_lost")
                asked.answer.set_result(error)
        if self._pending:
            self._schedule_pump()

    def _wait_anew(self, replica: Replica) -> None:
        """Have what waits for a replica wait for any."""
        waiting, replica.pending, replica.over = replica.pending, [], []
        for asked in waiting:
            heapq.heappush(self._pending, asked)

    def _give_up(self, replica: Replica, error: EngineError) -> None:
        """Take a replica out for good; its requests wait for another one, or fail where it was the last."""
        if replica.lost is not None:
            return
        replica.up, replica.lost = False, error
        self._take_back(replica)
        if any(other.lost is None for other in self._replicas):
            self._told.append(f"one of its engines is lost, the others go on: {error}")
            return
        self._dead = error
        for asked in self._pending:
            if not asked.answer.done():
                asked.answer.set_result(error)
        self._pending.clear()

    def _finish(self, replica: Replica, number: int, answer: Answer) -> None:
        asked, lent = replica.in_flight.pop(number, None), self._lent.pop(number, None)
        if asked is None and lent is None:
            return  # an answer that came twice, after the engine was lost and the request asked again
        replica.room += asked is not None
        asked = asked or lent
        if asked is None or asked.answer.done():
            return
        if asked.twice and isinstance(answer, EngineError) and any(number in other.in_flight for other in self._replicas):
            return  # the other may do better
        if asked.twice:
            self._drop_other(number)
        else:
            self.late.answered(asyncio.get_running_loop().time() - asked.since)
        asked.answer.set_result(answer)


def _as_engine_error(error: Exception) -> EngineError:
    """Return what went wrong on the way to an engine as an error of its own; nothing may leave a request waiting for ever."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, AskAnewError):
        return EngineError(str(error), kind=ASK_ANEW)
    return EngineError(f"engine: the way to it broke: {type(error).__name__}: {error}", kind="engine_lost", retry=True)
