"""Time left of a chain, told while a queue of known costs is worked off; the clock is the queue's own."""

from __future__ import annotations

import heapq
from collections import deque
from random import Random

import pytest

from caiflow.engine.flow.pace import Pace


class Worked:
    """A chain of three steps worked off by an engine of some slots: what `Pace` told, against what then came."""

    def __init__(self, rows: int, slots: int, costs: dict[str, float], known: int = 0, seed: int = 1) -> None:
        self.now = 0.0
        self.costs, self.slots, self.known = costs, slots, known
        self.pace = Pace(costs, lambda: self.now)
        self.waiting = dict.fromkeys(costs, rows)
        self.told: dict[str, list[tuple[float, float]]] = {name: [] for name in costs}
        self.ended = dict.fromkeys(costs, 0.0)
        self._rng = Random(seed)
        self._order = list(costs)
        self._work_off(rows)

    def _work_off(self, rows: int) -> None:
        """Have twice the slots under way, first come first served, as the flow and an engine do."""
        for name in self._order:
            self.waiting[name] -= self.known
        fresh = deque(range(rows - self.known))
        queued: deque[str] = deque()
        at_work: list[tuple[float, str]] = []
        rows_under_way = 0
        while fresh or at_work:
            while fresh and rows_under_way < 2 * self.slots:
                fresh.popleft()
                rows_under_way += 1
                self._enter(queued, self._order[0])
            while queued and len(at_work) < self.slots:
                name = queued.popleft()
                heapq.heappush(at_work, (self.now + self.costs[name] * self._rng.uniform(0.3, 1.7), name))
            self.now, name = heapq.heappop(at_work)
            self._leave(name)
            place = self._order.index(name) + 1
            if place < len(self._order):
                self._enter(queued, self._order[place])
            else:
                rows_under_way -= 1

    def _enter(self, queued: deque[str], name: str) -> None:
        self.pace.begin(name)
        queued.append(name)

    def _leave(self, name: str) -> None:
        self.pace.end(name)
        self.waiting[name] -= 1
        self.ended[name] = self.now
        for step in self._order:
            left = self.pace.left_s(step, self.waiting)
            if left is not None and self.waiting[step]:
                self.told[step].append((self.now, left))


COSTS = {"answer": 8.0, "critique": 2.0, "revision": 4.0}


@pytest.mark.parametrize(("rows", "slots", "known"), [(600, 32, 0), (600, 32, 300), (60, 8, 0), (24, 16, 0), (400, 1, 0)])
def test_the_time_left_of_a_chain_is_the_time_it_takes(rows: int, slots: int, known: int) -> None:
    run = Worked(rows, slots, COSTS, known)
    for step, told in run.told.items():
        for now, left in told:
            true = run.ended[step] - now
            assert abs(left - true) <= 0.25 * true + 0.1 * run.now, (
                f"{step}: {left:.0f} s told, {true:.0f} s taken at {now:.0f} s"
            )


def test_a_long_chain_is_foretold_from_its_first_third_on() -> None:
    run = Worked(600, 32, COSTS)
    for told in run.told.values():
        assert told[0][0] < run.now / 3


def test_the_shares_of_a_chains_steps_are_its_time() -> None:
    run = Worked(600, 32, COSTS)
    shares = {name: run.pace.busy_s(name) for name in COSTS}
    assert sum(shares.values()) == pytest.approx(run.now)
    assert shares["answer"] > shares["revision"] > shares["critique"]


def test_rows_out_of_the_ledger_tell_nothing_of_what_a_row_costs() -> None:
    now = 0.0
    pace = Pace(["answer"], lambda: now)
    for _ in range(100):
        pace.begin("answer")
        pace.end("answer", computed=False)
    assert pace.left_s("answer", {"answer": 10}) is None
    for _ in range(5):
        pace.begin("answer")
        now += 2.0
        pace.end("answer")
    assert pace.left_s("answer", {"answer": 10}) == pytest.approx(20.0)


def test_nothing_is_foretold_before_anything_was_computed() -> None:
    pace = Pace(["answer"], lambda: 5.0)
    assert pace.left_s("answer", {"answer": 10}) is None
    assert pace.busy_s("answer") == 0.0
    assert pace.left_s("answer", {"answer": 0}) == 0.0


def test_time_in_which_nothing_is_under_way_counts_for_nobody() -> None:
    now = 0.0
    pace = Pace(["answer"], lambda: now)
    now = 60.0
    pace.begin("answer")
    now = 62.0
    pace.end("answer")
    now = 90.0
    assert pace.busy_s("answer") == 2.0
    assert pace.left_s("answer", {"answer": 3}) == pytest.approx(6.0)


def test_what_is_no_work_is_no_step_s_time() -> None:
    now = [0.0]
    pace = Pace(["one"], lambda: now[0])
    pace.begin("one")
    pace.held = lambda: True
    now[0] = 30.0
    assert pace.busy_s("one") == 0.0
    pace.held = lambda: False
    now[0] = 32.0
    pace.end("one")
    assert (pace.busy_s("one"), pace.left_s("one", {"one": 3})) == (2.0, 6.0)
