"""Seeded choices: the same everywhere, and as even as chance."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from caiflow.operators.mixing.draws import fraction, ranks


def test_ranks_are_the_same_on_every_machine() -> None:
    assert ranks(["a", "row-two", "0123456789abcdef0123"], 7, "draw").tolist() == [
        1329247797083252444,
        6381033112964044823,
        2886680332664331060,
    ]
    assert ranks([], 7, "draw").tolist() == []


def test_uids_that_differ_by_nuls_at_their_end_have_ranks_of_their_own() -> None:
    uids = [start + nuls * "\0" for start in ("", "a", "row-two-") for nuls in (0, 1, 2, 8)]
    assert len(set(ranks(uids, 7, "draw").tolist())) == len(uids)


@given(st.lists(st.text(max_size=30), min_size=1, unique=True), st.integers())
def test_a_rank_hangs_on_its_own_uid_alone(uids: list[str], seed: int) -> None:
    alone = [int(ranks([uid], seed, "x")[0]) for uid in uids]
    together = ranks(uids, seed, "x").tolist()
    assert together == alone


def test_ranks_are_uniform_and_independent_between_seeds_and_purposes() -> None:
    uids = [f"row{n}" for n in range(5000)]
    first, seeded, other = ranks(uids, 1, "draw"), ranks(uids, 2, "draw"), ranks(uids, 1, "order")
    assert stats.kstest(first / 2.0**64, "uniform").pvalue > 1e-3
    for second in (seeded, other):
        assert abs(stats.spearmanr(first, second).statistic) < 0.05
    assert len(np.unique(first)) == 5000


def test_fractions_are_uniform() -> None:
    found = [fraction(3, f"prompt {n}") for n in range(5000)]
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    assert fraction("a", "b") != fraction("ab")
