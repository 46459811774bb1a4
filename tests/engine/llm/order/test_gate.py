"""The gate before vLLM: which rows' calls go in, and when a step had better wait for a row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from caiflow.engine.llm.base import Request
from caiflow.engine.llm.order.gate import Gate


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def ids(row: int, length: int, alike: int = 0) -> Sequence[int]:
    """Return a prompt's tokens, the first ones the same for all rows."""
    return [0] * alike + [row + 1] * (length - alike)


def of_row(row: int, more: int = 0) -> Request:
    return Request("", turn=row, more=more, row=f"r{row}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def gate(clock: Clock, *, slots: int = 2, blocks: int = 1000) -> Gate:
    """Return a gate whose steps take 20 ms."""
    made = Gate(slots, blocks, 4, clock)
    made.stepped(0.02)
    return made


def test_new_rows_wait_for_a_slot_and_the_oldest_goes_first(clock: Clock) -> None:
    door = gate(clock)
    assert not any(door.arrive(row, of_row(row), ids(row, 8)) for row in (3, 1, 2))
    assert door.admitted() == [1, 2]
    assert door.admitted() == []
    door.finish(1)
    assert door.admitted() == [3]


def test_a_row_s_next_call_goes_in_at_once_and_its_slot_is_kept(clock: Clock) -> None:
    door = gate(clock, slots=8)
    for row in range(20):
        door.arrive(row, of_row(row, 1), ids(row, 8))
    assert door.admitted() == list(range(8))
    for row in range(3):
        door.finish(row)
    assert door.admitted() == [8]  # one ahead, not three: the others' slots are kept
    assert door.arrive(100, of_row(0), ids(0, 12))


def test_rows_are_open_only_as_far_as_the_cache_holds_all_their_calls(clock: Clock) -> None:
    door = gate(clock, slots=16, blocks=40)
    for row in range(16):
        door.arrive(row, of_row(row, 4), ids(row, 16))
    few = door.admitted()
    assert 2 <= len(few) <= 5  # four blocks each would let ten in; they are to grow
    short = gate(clock, slots=16, blocks=40)
    for row in range(16):
        short.arrive(row, of_row(row), ids(row, 16))
    assert len(short.admitted()) == 16  # nothing of rows with one call is asked again, and vLLM knows its room best


def test_a_call_whose_beginning_is_not_read_again_holds_no_place_and_fills_what_is_left(clock: Clock) -> None:
    door = gate(clock, slots=8, blocks=60)
    door.arrive(0, of_row(0, 3), ids(0, 40))
    assert door.admitted() == [0]
    door.finish(0)
    assert door.awaits  # nothing is known yet
    assert door.arrive(100, of_row(0, 2), ids(0, 60, alike=20))
    for row in range(1, 4):
        door.arrive(row, of_row(row, 3), ids(row, 40))
    assert door.admitted() == [1, 2, 3]
    door.finish(1)
    assert not door.awaits
    assert not door.arrive(101, of_row(1, 2), ids(1, 160, alike=20))
    door.arrive(5, of_row(5, 3), ids(5, 40))
    assert door.admitted() == [5]  # the older one finds no room for its calls, this one does for its first


def test_a_row_that_is_nearly_through_soon_gives_its_room(clock: Clock) -> None:
    def let_in(steps: int) -> list[int]:
        door = gate(clock, blocks=23)
        door.arrive(9, of_row(9), ids(9, 4))
        door.admitted()
        for _ in range(20):
            door.stepped(0.02)
        door.finish(9)  # calls take twenty steps
        door.arrive(0, of_row(0, 1), ids(0, 32))
        door.arrive(1, of_row(1, 1), ids(1, 24))
        assert door.admitted()[:1] == [0]
        for _ in range(steps):
            door.stepped(0.02)
        return door.admitted()

    assert let_in(0) == []
    assert let_in(19) == [1]


def test_what_rows_share_counts_once(clock: Clock) -> None:
    alone, alike = gate(clock, slots=16, blocks=60), gate(clock, slots=16, blocks=60)
    for row in range(16):
        alone.arrive(row, of_row(row, 1), ids(row, 48))
        alike.arrive(row, of_row(row, 1), ids(row, 48, alike=40))
    assert len(alike.admitted()) > 2 * len(alone.admitted())


def test_a_row_larger_than_the_cache_goes_in_alone(clock: Clock) -> None:
    door = gate(clock, blocks=4)
    for row in range(2):
        door.arrive(row, of_row(row, 1), ids(row, 40))
    assert door.admitted() == [0]
    door.finish(0)
    assert door.admitted() == []
    assert door.arrive(10, of_row(0), ids(0, 44))
    door.finish(10)
    assert door.admitted() == [1]


def test_a_step_waits_for_a_row_that_asks_on_and_for_no_other(clock: Clock) -> None:
    door = gate(clock)
    for row in range(2):
        door.arrive(row, of_row(row, row), ids(row, 8))
    door.admitted()
    assert door.wait_s() == 0
    door.finish(0)  # its last call
    assert door.wait_s() == 0
    door.finish(1)
    assert door.awaits
    assert 0 < door.wait_s() < 1.001
    door.over(["r1"])
    assert door.wait_s() == 0
    assert not door.awaits


def test_a_step_that_costs_little_waits_for_nobody(clock: Clock) -> None:
    door = Gate(8, 1000, 4, clock)
    door.stepped(0.001)
    for row in range(8):
        door.arrive(row, of_row(row, 1), ids(row, 8))
    door.admitted()
    door.finish(0)
    assert door.wait_s() == 0  # seven would stand idle for 2 ms, to spare one a step of 1 ms
    for row in range(1, 8):
        door.finish(row)
    assert door.wait_s() > 0


def test_rows_that_stay_away_lose_their_place_and_are_waited_for_no_more(clock: Clock) -> None:
    door = gate(clock)
    for row in range(60):
        door.arrive(row, of_row(row, 1), ids(row, 8))
    let_in: list[int] = []
    while new := door.admitted():
        let_in += new
        for number in new:
            door.finish(number)
        clock.now += 1.1
        waited = door.wait_s()
    assert let_in == list(range(60))
    assert waited == 0
    assert not door.arrive(99, of_row(0), ids(0, 12))
    assert door.admitted() == [99]


def test_on_a_busy_machine_a_row_may_stay_away_for_some_steps(clock: Clock) -> None:
    door = gate(clock)
    for row in range(4):
        door.arrive(row, of_row(row, 9), ids(row, 8))
    assert door.admitted() == [0, 1]
    door.finish(0)
    assert door.admitted() == [2]  # one ahead
    door.finish(1)
    for _ in range(7):
        clock.now += 0.5  # a step, as long as that
        door.stepped(0.5)
        door.wait_s()
        assert door.admitted() == []
    clock.now += 0.5
    door.stepped(0.5)
    door.wait_s()
    assert door.admitted() == [3]  # their places are others'


def test_a_row_whose_call_may_have_come_during_a_step_is_not_forgotten(clock: Clock) -> None:
    door = gate(clock)
    for row in range(4):
        door.arrive(row, of_row(row, 9), ids(row, 8))
    door.admitted()
    door.finish(0)
    door.admitted()
    door.finish(1)
    for _ in range(20):
        clock.now += 0.5
        door.stepped(0.5)
        assert door.admitted() == []  # nobody looked whether it came
    assert door.arrive(10, of_row(0, 8), ids(0, 12))


def test_rows_that_come_back_are_waited_for_as_long_as_they_take(clock: Clock) -> None:
    door = gate(clock, slots=4)
    for row in range(4):
        door.arrive(row, of_row(row, 9), ids(row, 8))
    door.admitted()
    numbers = list(range(4))
    for call in range(30):
        door.finish(numbers[call % 4])
        sent = clock.now + 0.0005
        clock.now += 0.02  # a step kept it from being taken in
        door.sent(sent)
        numbers[call % 4] = 1000 + call
        assert door.arrive(1000 + call, of_row(call % 4, 9), ids(call % 4, 8))
    door.finish(numbers[0])
    assert door.wait_s() == pytest.approx(0.008, rel=0.2)  # sixteen times as long, at the most


def test_a_step_waits_longer_where_rows_are_kept_out_for_want_of_room(clock: Clock) -> None:
    def waits(blocks: int) -> bool:
        door = Gate(8, blocks, 4, clock)
        door.stepped(0.005)
        for row in range(8):
            door.arrive(row, of_row(row, 3), ids(row, 16))
        door.finish(door.admitted()[0])
        door.admitted()
        return door.wait_s() > 0

    assert waits(46)  # five rows fit, and what the row that is away has read would be the first to go
    assert not waits(1000)  # seven would stand idle for 2 ms, to spare one a step of 5 ms
