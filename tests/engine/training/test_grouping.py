"""Rows grouped by length: all of them once an epoch, hardly padded, in an order that the seed and the epoch tell."""

from __future__ import annotations

import random

import pytest

from caiflow.engine.training.grouping import Grouped, lengths


def padded_over_real(sizes: list[int], order: list[int], batch: int) -> float:
    batches = [[sizes[row] for row in order[start : start + batch]] for start in range(0, len(order), batch)]
    return sum(len(rows) * max(rows) for rows in batches) / sum(sizes)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 333, 5000])
def test_each_epoch_has_every_row_once_in_an_order_of_its_own(rows: int) -> None:
    sizes = [random.Random(place).randint(30, 400) for place in range(rows)]
    order = Grouped(sizes, 8, 3)
    first = list(order)
    assert sorted(first) == list(range(rows))
    order.set_epoch(1)
    second = list(order)
    assert sorted(second) == list(range(rows))
    assert rows < 100 or first != second
    order.set_epoch(0)
    assert list(order) == first == list(Grouped(sizes, 8, 3))
    assert rows < 100 or list(Grouped(sizes, 8, 4)) != first


@pytest.mark.parametrize("batch", [4, 8, 16])
def test_batches_are_hardly_padded(batch: int) -> None:
    dice = random.Random(5)
    sizes = [max(20, min(1024, round(dice.lognormvariate(5.3, 0.8)))) for _ in range(4000)]
    order = list(Grouped(sizes, batch, 1))
    assert padded_over_real(sizes, order, batch) <= 1.05
    assert padded_over_real(sizes, list(range(4000)), batch) > 1.4


def test_few_rows_of_real_dialogues_lengths_are_hardly_padded_and_batched_anew_each_epoch() -> None:
    dice = random.Random(7)
    sizes = [max(20, min(512, round(dice.lognormvariate(5.1, 0.9)))) for _ in range(203)]  # as hh-rlhf's
    order = Grouped(sizes, 8, 1)
    first = list(order)
    assert padded_over_real(sizes, first, 8) <= 1.05
    order.set_epoch(1)
    batches = [{frozenset(one[start : start + 8]) for start in range(0, 203, 8)} for one in (first, list(order))]
    assert len(batches[0] & batches[1]) < len(batches[0])


def test_short_batches_aren_t_all_learnt_before_long_ones() -> None:
    sizes = list(range(1, 4001))
    order = list(Grouped(sizes, 8, 1))
    tenths = [sum(sizes[row] for row in order[start : start + 400]) / 400 for start in range(0, 4000, 400)]
    assert all(1400 < mean < 2600 for mean in tenths)


def test_a_pair_is_as_long_as_its_longer_sequence() -> None:
    from datasets import Dataset

    pairs = Dataset.from_dict({"prompt_ids": [[1, 2], [1]], "chosen_ids": [[1], [1, 2, 3]], "rejected_ids": [[1, 2], []]})
    assert lengths(pairs) == [4, 4]
    assert lengths(Dataset.from_dict({"input_ids": [[1, 2], [1]], "labels": [[1, 2], [1]]})) == [2, 1]
    assert lengths(Dataset.from_dict({"prompt": ["not tokens yet"]})) == []
