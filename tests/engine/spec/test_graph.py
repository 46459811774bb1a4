"""Order, cycles and reach over plain edges."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.spec.graph import cycles, order, reach

_NAMES = st.sampled_from("abcdefg")
_EDGES = st.dictionaries(_NAMES, st.lists(_NAMES, max_size=3, unique=True).map(tuple), min_size=1)


def test_each_name_comes_after_what_it_needs_and_else_in_the_given_order() -> None:
    assert order({"c": ("a",), "x": (), "a": (), "b": ("a", "c")}) == ["x", "a", "c", "b"]


def test_a_cycle_is_named_and_cannot_be_ordered() -> None:
    needs = {"a": ("c",), "b": ("a",), "c": ("b",), "d": ("a",), "e": ("e",)}
    assert cycles(needs) == [["a", "c", "b", "a"], ["e", "e"]]
    with pytest.raises(ValueError, match="a -> c -> b -> a"):
        order(needs)


def test_reach_includes_the_starts() -> None:
    assert reach(["c"], {"c": ("b",), "b": ("a",), "a": (), "d": ("c",)}) == {"a", "b", "c"}


@given(_EDGES)
def test_what_has_no_cycle_can_be_ordered_and_only_that(needs: dict[str, tuple[str, ...]]) -> None:
    needs = {name: tuple(need for need in found if need in needs) for name, found in needs.items()}
    found = cycles(needs)
    for cycle in found:
        assert cycle[0] == cycle[-1]
        assert all(need in needs[name] for name, need in pairwise(cycle))
    if found:
        with pytest.raises(ValueError, match="cycle"):
            order(needs)
    else:
        names = order(needs)
        assert sorted(names) == sorted(needs)
        assert all(names.index(need) < names.index(name) for name in needs for need in needs[name])


def test_a_long_chain_is_no_deep_recursion() -> None:
    chain = {str(number): (str(number + 1),) for number in range(3000)} | {"3000": ()}
    assert cycles(chain) == []
    assert len(reach(["0"], chain)) == 3001
