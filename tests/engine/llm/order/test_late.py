"""Which calls are asked of a second engine: few, late ones, and only where there is room."""

from __future__ import annotations

import pytest

from caiflow.engine.llm.order.late import KNOWN, LEAST_S, SHARE, TIMES, Late


def known(answered: int, seconds: float = 1.0) -> Late:
    late = Late()
    for _ in range(answered):
        late.answered(seconds)
    return late


def test_calls_that_are_out_for_a_multiple_of_the_median_are_overdue_the_longest_first() -> None:
    waited = [(1, TIMES - 0.1), (2, TIMES + 0.1), (3, TIMES + 5), (4, 0.0)]
    assert known(100).overdue(waited, 64) == [3, 2]


@pytest.mark.parametrize(("seconds", "limit_s"), [(0.001, LEAST_S), (10.0, 10 * TIMES)])
def test_what_is_over_soon_is_not_worth_asking_twice(seconds: float, limit_s: float) -> None:
    late = known(100, seconds)
    assert late.overdue([(1, limit_s)], 64) == []
    assert late.overdue([(1, limit_s + 0.1)], 64) == [1]


def test_a_few_slow_calls_do_not_move_the_limit() -> None:
    late = known(90)
    for _ in range(40):
        late.answered(600.0)
    assert late.overdue([(1, TIMES + 1)], 64) == [1]


def test_nothing_is_overdue_before_enough_is_known() -> None:
    assert known(KNOWN - 1).overdue([(1, 1e6)], 64) == []
    assert known(KNOWN).overdue([(1, 1e6)], 64) == [1]


def test_no_more_are_asked_twice_than_there_is_room_for_and_a_small_share_of_all() -> None:
    waited = [(number, 1e3 + number) for number in range(50)]
    late = known(200)
    assert late.overdue(waited, 3) == [49, 48, 47]
    assert late.overdue(waited, 0) == []
    assert len(late.overdue(waited, 64)) == 200 * SHARE
    late.twice = 10
    assert late.overdue(waited, 64) == []
