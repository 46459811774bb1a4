"""The engine's host: each client has its own answers, also when it begins again with the same ids."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from caiflow.engine.errors import AskAnewError, EngineError
from caiflow.engine.llm.base import Answer, Completion, LinkLost, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.served.taught import ASK_ANEW
from support.scripted import ScriptedEngine


class GatedEngine(ScriptedEngine):
    """Answers only once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Answer, or wait a little."""
        return super().step() if self.may_answer.wait(0.01) else []


@contextmanager
def hosted(engine: ScriptedEngine) -> Iterator[EngineHost]:
    host = EngineHost(lambda: engine)
    try:
        yield host
    finally:
        host.close()


def text(answer: Answer) -> str:
    assert isinstance(answer, Completion)
    return answer.text


def gathered(host: EngineHost, client: str, session: str, count: int) -> dict[int, str]:
    """Collect a client's answers until there are `count`."""
    found: dict[int, str] = {}
    until = time.monotonic() + 60
    while len(found) < count and time.monotonic() < until:
        found |= {number: text(answer) for number, answer in host.collect(client, session, 0.2)}
    return found


def asked(words: Sequence[str]) -> list[tuple[int, Request]]:
    return [(number, Request(word)) for number, word in enumerate(words)]


def test_each_client_has_its_own_answers() -> None:
    with hosted(ScriptedEngine()) as host:
        sessions = {name: host.begin(name) for name in "ab"}
        for name, session in sessions.items():
            host.submit(name, session, asked([f"{name}0", f"{name}1"]))
        for name, session in sessions.items():
            assert gathered(host, name, session, 2) == {0: f"re: {name}0 #0", 1: f"re: {name}1 #0"}


def test_what_a_dead_client_asked_is_never_answered_to_its_successor() -> None:
    engine = GatedEngine()
    with hosted(engine) as host:
        old = host.begin("worker")
        host.submit("worker", old, asked(["old0", "old1", "old2"]))
        new = host.begin("worker")
        host.submit("worker", new, asked(["new0", "new1"]))
        engine.may_answer.set()
        assert gathered(host, "worker", new, 2) == {0: "re: new0 #0", 1: "re: new1 #0"}
        assert host.collect("worker", new, 0.1) == []


def test_what_a_dead_client_was_answered_or_still_asks_is_not_computed_again() -> None:
    engine = GatedEngine()
    with hosted(engine) as host:
        old, other = host.begin("worker"), host.begin("other")
        engine.may_answer.set()
        host.submit("worker", old, [(7, Request("heard", seed=2, turn=3, row="old:3")), (8, Request("unheard"))])
        assert gathered(host, "worker", old, 2) == {7: "re: heard #2", 8: "re: unheard #0"}
        engine.may_answer.clear()
        host.submit("worker", old, asked(["computed"]))
        while len(engine.asked) < 3:
            time.sleep(0.01)
        new = host.begin("worker")
        again = [
            Request("heard", seed=2, turn=9, row="new:9"),
            Request("computed"),
            Request("unheard"),
            Request("heard", seed=5),
        ]
        host.submit("worker", new, list(enumerate(again)))
        host.submit("other", other, asked(["heard"]))
        engine.may_answer.set()
        told = {0: "re: heard #2", 1: "re: computed #0", 2: "re: unheard #0", 3: "re: heard #5"}
        assert gathered(host, "worker", new, 4) == told
        assert gathered(host, "other", other, 1) == {0: "re: heard #0"}
        host.submit("worker", new, [(4, Request("unheard"))])
        assert gathered(host, "worker", new, 1) == {4: "re: unheard #0"}
        asked_for = [(request.prompt, request.seed) for request in engine.asked]
        once = [("heard", 2), ("unheard", 0), ("computed", 0), ("heard", 5)]
        assert asked_for == [*once, ("heard", 0), ("unheard", 0)]  # what is asked once more is drawn once more


def test_a_session_of_before_is_told_so() -> None:
    with hosted(ScriptedEngine()) as host:
        old = host.begin("worker")
        host.begin("worker")
        for call in (lambda: host.submit("worker", old, asked(["late"])), lambda: host.collect("worker", old, 0.1)):
            with pytest.raises(EngineError, match="doesn't know this session") as caught:
                call()
            assert (caught.value.kind, caught.value.retry) == ("engine_lost", True)


def test_a_client_that_replaces_a_dead_one_asks_for_itself() -> None:
    engine = GatedEngine()

    async def dies(host: EngineHost) -> None:
        async with EngineClient([LocalLink(host, "worker")]) as client:
            tasks = [asyncio.create_task(client.ask(Request(f"old{number}"))) for number in range(4)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()

    async def follows(host: EngineHost) -> list[str]:
        async with EngineClient([LocalLink(host, "worker")]) as client:
            engine.may_answer.set()
            return [text(answer) for answer in await asyncio.gather(*(client.ask(Request(f"new{n}")) for n in range(4)))]

    with hosted(engine) as host:
        asyncio.run(dies(host))
        assert asyncio.run(follows(host)) == [f"re: new{n} #0" for n in range(4)]


def test_an_engine_starts_in_the_thread_that_steps_it() -> None:
    seen: list[threading.Thread] = []

    class Watched(ScriptedEngine):
        def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
            seen.append(threading.current_thread())
            return super().step()

    def start() -> Watched:
        seen.append(threading.current_thread())
        return Watched()

    host = EngineHost(start)
    try:
        session = host.begin("one")
        host.submit("one", session, asked(["a"]))
        gathered(host, "one", session, 1)
    finally:
        host.close()
    assert len(seen) > 1
    assert len(set(seen)) == 1
    assert seen[0] is not threading.current_thread()


def test_an_engine_that_can_not_start_says_why_to_who_asked_for_it() -> None:
    def start() -> ScriptedEngine:
        raise EngineError("no such model", kind="load")

    with pytest.raises(EngineError, match="no such model"):
        EngineHost(start)


def test_no_request_is_lost_while_many_threads_ask() -> None:
    with hosted(ScriptedEngine()) as host:
        sessions = {f"client{number}": host.begin(f"client{number}") for number in range(8)}

        def ask(client: str) -> None:
            for number in range(300):
                host.submit(client, sessions[client], [(number, Request(f"{client}:{number}"))])

        threads = [threading.Thread(target=ask, args=(client,)) for client in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client, session in sessions.items():
            assert len(gathered(host, client, session, 300)) == 300


class DyingLink(LocalLink):
    """A link whose engine's process is gone for good after some requests, as Ray tells it."""

    def __init__(self, host: EngineHost, *, takes: int) -> None:
        super().__init__(host, "dying")
        self._left = takes

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Take requests until there were too many."""
        self._left -= len(requests)
        if self._left < 0:
            raise EngineError("engine: its process died too often", "look at its memory", kind="engine_lost")
        await super().submit(requests, over)

    async def collect(self) -> list[tuple[int, Answer]]:
        """Answer while the process lives."""
        if self._left < 0:
            raise EngineError("engine: its process died too often", "look at its memory", kind="engine_lost")
        return await super().collect()


class BrokenLink(LocalLink):
    """A link whose `broken` way raises what no link is to raise."""

    def __init__(self, host: EngineHost, broken: str) -> None:
        super().__init__(host, "broken")
        self._broken = broken

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Take requests, or break."""
        if self._broken == "submit":
            raise ValueError("a request that can't be sent")
        await super().submit(requests, over)

    async def collect(self) -> list[tuple[int, Answer]]:
        """Answer, or break."""
        if self._broken == "collect":
            raise ValueError("an answer that can't be read")
        return await super().collect()


class AbsentLink(LocalLink):
    """A link to an engine that can't be started where it is, as Ray tells it."""

    async def open(self) -> None:
        """Fail as a load does."""
        raise EngineError("engine: no memory for it", kind="load")


class SlowLink(LocalLink):
    """A link whose engine's process is gone after some requests, and comes back when the test says so."""

    def __init__(self, host: EngineHost, *, takes: int) -> None:
        super().__init__(host, "slow")
        self._left = takes
        self.back = asyncio.Event()
        self.lost = False

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Take requests until there were too many."""
        self._left -= len(requests)
        if self._left < 0 and not self.back.is_set():
            self.lost = True
            raise LinkLost("its process is gone")
        await super().submit(requests, over)

    async def collect(self) -> list[tuple[int, Answer]]:
        """Answer while the process lives."""
        if self.lost and not self.back.is_set():
            raise LinkLost("its process is gone")
        return await super().collect()

    async def revive(self) -> None:
        """Wait for the process."""
        self.waiting = "its engine, which is begun again"
        await self.back.wait()
        await self.open()


def test_a_replica_that_can_not_start_is_told_and_the_other_answers() -> None:
    async def answers(host: EngineHost) -> tuple[list[Answer], list[str], list[str]]:
        async with EngineClient([AbsentLink(host, "absent"), LocalLink(host, "living")]) as client:
            found = await asyncio.gather(*(client.ask(Request(f"word {n}")) for n in range(50)))
            return found, client.told(), client.told()

    with hosted(ScriptedEngine()) as host:
        found, told, again = asyncio.run(answers(host))
    assert all(isinstance(answer, Completion) for answer in found)
    assert (told, again) == (["one of its engines is lost, the others go on: engine: no memory for it"], [])


def test_where_no_replica_can_start_the_first_to_ask_hears_why() -> None:
    async def begin(host: EngineHost) -> None:
        async with EngineClient([AbsentLink(host, "one"), AbsentLink(host, "two")]):
            pass

    with hosted(ScriptedEngine()) as host, pytest.raises(EngineError, match="no memory for it"):
        asyncio.run(begin(host))


@pytest.mark.parametrize("takes", [0, 7])
def test_what_a_replica_had_goes_to_the_other_while_it_is_begun_again(takes: int) -> None:
    async def answers(host: EngineHost, other: EngineHost) -> tuple[list[Answer], str, list[Answer]]:
        slow = SlowLink(host, takes=takes)
        slow.waiting = "its engine, which is begun again"
        async with EngineClient([slow, LocalLink(other, "living")]) as client:
            found = await asyncio.gather(*(client.ask(Request(f"word {n}")) for n in range(200)))
            told = client.waiting
            slow.back.set()
            return found, told, await asyncio.gather(*(client.ask(Request(f"later {n}")) for n in range(200)))

    with hosted(ScriptedEngine()) as host, hosted(ScriptedEngine()) as other:
        found, told, later = asyncio.run(asyncio.wait_for(answers(host, other), 60))
    assert all(isinstance(answer, Completion) for answer in (*found, *later))
    assert told == "its engine, which is begun again"


class SilentLink(LocalLink):
    """A link to an engine whose machine is frozen until the test says otherwise: `late` as it begins, or once it was asked."""

    def __init__(self, host: EngineHost, *, late: bool) -> None:
        super().__init__(host, "silent")
        self._late = late
        self.thawed = asyncio.Event()

    async def open(self) -> None:
        """Begin a session."""
        if self._late:
            await self.thawed.wait()
        await super().open()

    async def collect(self) -> list[tuple[int, Answer]]:
        """Say nothing while it is frozen."""
        await self.thawed.wait()
        return await super().collect()


@pytest.mark.parametrize("late", [True, False])
def test_what_a_silent_replica_was_asked_is_answered_by_the_other(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    for name in ("COLLECT_S", "SILENT_S", "LATE_S"):
        monkeypatch.setattr(f"caiflow.engine.llm.client.{name}", 0.1)

    async def answers(host: EngineHost, other: EngineHost) -> tuple[list[Answer], list[str], list[Answer], bool]:
        silent = SilentLink(host, late=late)
        async with EngineClient([silent, LocalLink(other, "living")]) as client:
            found = await asyncio.gather(*(client.ask(Request(f"word {n}")) for n in range(200)))
            told = client.told()
            silent.thawed.set()
            while not all(replica.up for replica in client._replicas):
                await asyncio.sleep(0.01)
            client._replicas[1].room = 0
            return found, told, await asyncio.gather(*(client.ask(Request(f"later {n}")) for n in range(8))), not client._lent

    with hosted(ScriptedEngine()) as host, hosted(ScriptedEngine()) as other:
        found, told, later, none_kept = asyncio.run(asyncio.wait_for(answers(host, other), 60))
    assert all(isinstance(answer, Completion) for answer in (*found, *later))
    assert len(told) == 1
    assert ("aren't there yet" if late else "says nothing") in told[0]
    assert none_kept


class TaughtLink(SlowLink):
    """A link to a server that lists another model, first seen when it is opened, or only when it has come back."""

    def __init__(self, host: EngineHost, *, at_once: bool) -> None:
        super().__init__(host, takes=0)
        self._at_once = at_once

    async def open(self) -> None:
        """Begin a session, or hear of the other model."""
        if self._at_once or self.lost:
            raise AskAnewError("it lists another model")
        await super().open()


def test_a_lesson_at_the_start_reaches_whoever_opens_the_client() -> None:
    async def begin(host: EngineHost) -> None:
        async with EngineClient([TaughtLink(host, at_once=True)]):
            pass

    with hosted(ScriptedEngine()) as host, pytest.raises(AskAnewError, match="it lists another model"):
        asyncio.run(begin(host))


def test_a_lesson_after_a_loss_has_what_waits_asked_anew() -> None:
    async def answers(host: EngineHost) -> list[Answer]:
        link = TaughtLink(host, at_once=False)
        async with EngineClient([link]) as client:
            asking = [asyncio.ensure_future(client.ask(Request(f"word {n}"))) for n in range(9)]
            while not link.waiting:  # until its coming back is awaited
                await asyncio.sleep(0)
            link.back.set()
            return await asyncio.gather(*asking)

    with hosted(ScriptedEngine()) as host:
        found = asyncio.run(asyncio.wait_for(answers(host), 30))
    assert {answer.kind for answer in found if isinstance(answer, EngineError)} == {ASK_ANEW}
    assert len(found) == 9


@pytest.mark.parametrize("broken", ["submit", "collect"])
def test_a_way_to_an_engine_that_breaks_leaves_no_request_waiting(broken: str) -> None:
    async def answers(host: EngineHost) -> list[Answer]:
        async with EngineClient([BrokenLink(host, broken)]) as client:
            return await asyncio.gather(*(client.ask(Request(f"word {n}")) for n in range(9)))

    with hosted(ScriptedEngine()) as host:
        found = asyncio.run(asyncio.wait_for(answers(host), 30))
    assert all("the way to it broke: ValueError: a" in str(answer) for answer in found)


@pytest.mark.parametrize("takes", [0, 7])
def test_what_a_replica_had_that_died_for_good_is_answered_by_the_other(takes: int) -> None:
    async def answers(host: EngineHost, other: EngineHost) -> list[Answer]:
        async with EngineClient([DyingLink(host, takes=takes), LocalLink(other, "living")]) as client:
            return await asyncio.gather(*(client.ask(Request(f"word {n}")) for n in range(200)))

    with hosted(ScriptedEngine()) as host, hosted(ScriptedEngine()) as other:
        found = asyncio.run(answers(host, other))
    assert [answer for answer in found if isinstance(answer, EngineError)] == []


def test_where_every_replica_died_all_requests_say_so_and_none_waits() -> None:
    async def answers(host: EngineHost, other: EngineHost) -> list[Answer]:
        links = [DyingLink(host, takes=3), DyingLink(other, takes=9)]
        async with EngineClient(links) as client:
            first = await asyncio.gather(*(client.ask(Request(f"word {n}")) for n in range(200)))
            return [*first, await client.ask(Request("later"))]

    with hosted(ScriptedEngine()) as host, hosted(ScriptedEngine()) as other:
        found = asyncio.run(asyncio.wait_for(answers(host, other), 30))
    assert all(isinstance(answer, Completion) or "died too often" in str(answer) for answer in found)
    assert isinstance(found[-1], EngineError)


class Noting(LocalLink):
    """A link that remembers which rows it was told are over."""

    def __init__(self, host: EngineHost, client: str = "local") -> None:
        super().__init__(host, client)
        self.over: list[str] = []

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Remember."""
        self.over += over
        await super().submit(requests, over)


def test_a_row_stays_with_its_replica_and_is_over_where_it_asks_no_more() -> None:
    engines = [ScriptedEngine(capacity=4, per_step=1) for _ in range(2)]

    async def row(client: EngineClient, turn: int) -> None:
        for more in (2, 1):  # and the third is never asked
            await client.ask(Request(f"row {turn}", turn=turn, more=more))
        client.over(turn)

    async def all_rows(links: list[Noting]) -> None:
        async with EngineClient(links) as client:
            await asyncio.gather(*(row(client, turn) for turn in range(8)))
            await asyncio.sleep(0)

    with hosted(engines[0]) as one, hosted(engines[1]) as other:
        links = [Noting(one), Noting(other)]
        asyncio.run(all_rows(links))
    for engine, link in zip(engines, links, strict=True):
        by_row = Counter(request.row for request in engine.asked)
        assert len(by_row) == 4
        assert set(by_row.values()) == {2}
        assert set(link.over) <= by_row.keys()


class StrictGate:
    """Waits for one row."""

    def __init__(self) -> None:
        self.patience_s = 0.0
        self.ended: list[str] = []

    def wait_s(self) -> float:
        return self.patience_s

    def sent(self, at: float) -> None:
        """Wait for no more."""
        assert at <= time.monotonic()
        self.patience_s = 0.0

    def over(self, rows: Sequence[str]) -> None:
        self.ended += rows


def test_a_step_waits_for_what_the_gate_waits_for() -> None:
    engine = ScriptedEngine()
    gate = engine.gate = StrictGate()
    with hosted(engine) as host:
        session = host.begin("a")
        host.submit("a", session, asked(["first"]))
        assert gathered(host, "a", session, 1)
        gate.patience_s = 60.0
        host.submit("a", session, asked(["second"]), ["row 1"])
        assert gathered(host, "a", session, 1)  # long before the minute is over
    assert gate.ended == ["row 1"]


class StallingEngine(ScriptedEngine):
    """Answers all but one request, which it drops where that is asked of it."""

    def __init__(self, stalls: str) -> None:
        super().__init__()
        self._stalls = stalls
        self.dropped: list[int] = []

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue requests; what stalls is only remembered."""
        super().submit(requests)
        self._queue = [(number, request) for number, request in self._queue if request.prompt != self._stalls]

    def cancel(self, number: int) -> None:
        """End a request."""
        self.dropped.append(number)
        self._queue.append((number, Request("dropped")))


class PaidLink(LocalLink):
    """A link to an engine whose calls are paid for."""

    own = False


def two_of_one_model(
    monkeypatch: pytest.MonkeyPatch, first: type[LocalLink]
) -> tuple[list[str], int, int, list[StallingEngine]]:
    """Ask 100 requests of two engines, the first of which never answers one; return answers, engines, and calls counted."""
    monkeypatch.setattr("caiflow.engine.llm.client.LOOK_S", 0.01)
    monkeypatch.setattr("caiflow.engine.llm.order.late.LEAST_S", 0.1)
    engines = [StallingEngine("word 0"), StallingEngine("")]

    async def answers(host: EngineHost, other: EngineHost) -> tuple[list[str], int, int]:
        async with EngineClient([first(host, "one"), LocalLink(other, "other")]) as client:
            late = asyncio.ensure_future(client.ask(Request("word 0", seed=7, turn=0, more=2)))
            found = await asyncio.gather(*(client.ask(Request(f"word {n}", seed=7, turn=n)) for n in range(1, 100)))
            if first is PaidLink:
                await asyncio.sleep(0.3)
                assert not late.done()
                return [text(answer) for answer in found], client.calls, client.late.twice
            found = [await late, *found]
            while not engines[0].dropped:
                await asyncio.sleep(0.01)
            assert ["asked of another" in told for told in client.told()] == [True]
            return [text(answer) for answer in found], client.calls, client.late.twice

    with hosted(engines[0]) as host, hosted(engines[1]) as other:
        return *asyncio.run(asyncio.wait_for(answers(host, other), 60)), engines


def test_a_call_that_takes_far_longer_than_most_is_asked_of_another_and_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls, twice, (stalling, other) = two_of_one_model(monkeypatch, LocalLink)
    assert found == [f"re: word {n} #7" for n in range(100)]
    assert (calls, twice, len(stalling.asked) + len(other.asked)) == (100, 1, 101)
    (again,) = [request for request in other.asked if request.prompt == "word 0"]
    assert (again.seed, again.more, again.row) == (7, 0, "")  # the same answer, and no row that the other would wait for
    assert len(stalling.dropped) == 1


def test_a_call_that_is_paid_for_is_never_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls, twice, (stalling, other) = two_of_one_model(monkeypatch, PaidLink)
    assert (len(found), calls, twice, len(stalling.asked) + len(other.asked)) == (99, 99, 0, 100)


def test_a_dropped_call_s_answer_is_kept_for_nobody() -> None:
    engine = StallingEngine("long")
    with hosted(engine) as host:
        old = host.begin("worker")
        host.submit("worker", old, asked(["long", "short"]))
        assert gathered(host, "worker", old, 1) == {1: "re: short #0"}
        host.cancel("worker", old, [0])
        while not engine.dropped:
            time.sleep(0.01)
        new = host.begin("worker")
        host.submit("worker", new, asked(["other"]))
        assert gathered(host, "worker", new, 1) == {0: "re: other #0"}


class MovingLink(LocalLink):
    """A link to an engine that is in another process once it `moves`."""

    def __init__(self, host: EngineHost, successor: EngineHost) -> None:
        super().__init__(host, "moving")
        self._successor = successor
        self.moves = False

    async def revive(self) -> None:
        """Follow it."""
        self._host, self.moves = self._successor, False
        await self.open()


@pytest.mark.parametrize("busy", [True, False])
def test_what_an_engine_has_that_moves_is_answered_there_and_the_rest_by_its_successor(busy: bool) -> None:
    engine, successor = GatedEngine(), ScriptedEngine()

    async def answers(host: EngineHost, other: EngineHost) -> list[Answer]:
        link = MovingLink(host, other)
        async with EngineClient([link]) as client:
            early = [asyncio.ensure_future(client.ask(Request(f"early {n}"))) for n in range(5 * busy)]
            while len(engine.asked) < len(early):
                await asyncio.sleep(0.01)
            link.moves = True
            late = [asyncio.ensure_future(client.ask(Request(f"late {n}"))) for n in range(5)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in early)
            engine.may_answer.set()
            return await asyncio.gather(*early, *late)

    with hosted(engine) as host, hosted(successor) as other:
        found = asyncio.run(asyncio.wait_for(answers(host, other), 30))
        assert host.idle()
    assert all(isinstance(answer, Completion) for answer in found)
    assert [request.prompt for request in engine.asked] == [f"early {n}" for n in range(5 * busy)]  # and none asked twice
    assert [request.prompt for request in successor.asked] == [f"late {n}" for n in range(5)]
