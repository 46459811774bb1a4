"""Garbage is looked for seldom while rows stream, and as usual once no flow is left."""

from __future__ import annotations

import gc

from caiflow.engine.flow.collecting import OBJECTS, seldom_collected


def test_the_usual_pace_is_back_when_the_last_of_two_flows_ends() -> None:
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    first, second = seldom_collected(), seldom_collected()
    first.__enter__()
    assert gc.get_threshold() == (OBJECTS, *usual[1:])
    assert gc.get_freeze_count() > frozen
    second.__enter__()
    first.__exit__(None, None, None)  # the one that began first may end first
    assert gc.get_threshold() == (OBJECTS, *usual[1:])
    second.__exit__(None, None, None)
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() == 0
