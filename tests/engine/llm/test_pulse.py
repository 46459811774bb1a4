"""When an engine counts as hanging: never before what was seen of it allows, and always soon after."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.llm.pulse import FIRST_S, Pulse

PATIENCE_S = 40.0


class Clock:
    """A clock that stands until it is moved: what is tried here takes hours."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def warmed(clock: Clock, *passes: tuple[int, float]) -> Pulse:
    """Return the pulse of an engine that has made two first passes and then these, of so many tokens and seconds."""
    pulse = Pulse(clock=clock)
    for tokens, took_s in ((1, 100.0), (1, 100.0), *passes):
        pulse.beat(tokens)
        clock.now_s += took_s
    pulse.rest()
    return pulse


def noticed_after_s(pulse: Pulse, clock: Clock, tokens: int = 0, times: float = 1.0) -> float:
    """Return how long a piece of work that never ends takes to be noticed, to the second."""
    pulse.beat(tokens)
    began_s = clock.now_s
    while not pulse.hangs_for_s(PATIENCE_S, times):
        clock.now_s += 1.0
    return clock.now_s - began_s


def test_one_that_rests_never_hangs() -> None:
    clock = Clock()
    pulse = warmed(clock, (8, 0.1))
    clock.now_s += 10**6
    assert pulse.hangs_for_s(0.0) == 0.0
    pulse.beat(8)
    pulse.rest()
    clock.now_s += 10**6
    assert pulse.hangs_for_s(0.0) == 0.0


def test_one_that_has_been_quick_is_noticed_within_a_minute_whatever_it_is_at() -> None:
    for tokens in (0, 1, 512, 8192):  # rendering, decoding, prompts
        clock = Clock()
        assert noticed_after_s(warmed(clock, (512, 0.2), (16, 0.01)), clock, tokens) < 60


def test_the_first_passes_may_compile_and_read_a_long_prompt_slowly() -> None:
    clock = Clock()
    assert FIRST_S < noticed_after_s(Pulse(clock=clock), clock, 100) < FIRST_S + 20
    assert noticed_after_s(Pulse(clock=clock), clock, 8192) > 900  # nine tokens a second
    assert noticed_after_s(warmed(clock), clock, 8192) > 900  # that which compiled tells nothing
    assert noticed_after_s(Pulse(first_s=0.0, clock=clock), clock) < 60  # one that computes nothing here


def test_the_compilation_of_the_first_passes_makes_nobody_more_patient_later() -> None:
    clock = Clock()
    assert noticed_after_s(warmed(clock, (8, 0.01)), clock, 8) < 60


def test_an_engine_once_begun_again_may_take_a_multiple() -> None:
    clock = Clock()
    assert noticed_after_s(warmed(clock, (8, 0.01)), clock, 8, times=4.0) > 4 * PATIENCE_S


@given(
    st.floats(1e-5, 10.0),
    st.floats(1e-3, 100.0),
    st.floats(0.0, 0.02),
    st.lists(st.integers(1, 8192), min_size=1),
    st.integers(1, 32_768),
)
def test_no_pass_of_an_engine_that_keeps_its_pace_is_taken_for_hung(
    token_s: float, fixed_s: float, attention: float, seen: list[int], tokens: int
) -> None:
    """Of any speed, with a part that is the same for each pass and one that grows with the square of the prompt."""

    def takes_s(size: int) -> float:
        return fixed_s + token_s * size * (1 + attention * size / 100)

    clock = Clock()
    pulse = warmed(clock, *((size, takes_s(size)) for size in seen))
    pulse.beat(tokens)
    clock.now_s += takes_s(tokens)
    assert pulse.hangs_for_s(PATIENCE_S) == 0.0
