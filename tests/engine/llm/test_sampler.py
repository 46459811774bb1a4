from __future__ import annotations

import numpy as np
import pytest
import torch

from caiflow.engine.llm.base import Sampling
from caiflow.engine.llm.sampler import draw, penalised, probabilities, uniforms

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))


def frequencies(sampling: Sampling, n: int = 20_000) -> np.ndarray:
    rows = LOGITS.expand(n, -1).clone()
    tokens = draw(rows, [sampling] * n, list(range(n)), [0] * n)
    return np.bincount(tokens.numpy(), minlength=4) / n


def test_the_splitmix_of_zero_is_the_published_one() -> None:
    # splitmix64 seeded with 0 gives 0xE220A8397B1DCDAF first; that number is the state of the second round.
    second = 0x9E3779B97F4A7C15 + 0xE220A8397B1DCDAF & (1 << 64) - 1
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        second = ((second ^ (second >> shift)) * factor) & (1 << 64) - 1
    second ^= second >> 31
    assert uniforms([0], [0])[0] == (second >> 11) * 2.0**-53


def test_uniforms_are_uniform_and_depend_on_seed_and_count() -> None:
    values = uniforms(range(50_000), [3] * 50_000)
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.var() - 1 / 12) < 0.002
    assert len({*uniforms([1, 1, 2, -1], [0, 1, 0, 0])}) == 4


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draw(LOGITS[None], [Sampling()], [5], [0]).tolist() == [0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(temperature=0.5), [0.7246, 0.1812, 0.0652, 0.029]),
        (Sampling(temperature=1, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=1, top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=1, top_p=0.4), [1, 0, 0, 0]),
        (Sampling(temperature=1, min_p=0.25), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    assert frequencies(sampling) == pytest.approx(expected, abs=0.015)


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 50)
    samplings = [Sampling(), Sampling(temperature=1), Sampling(temperature=2, top_p=0.8), Sampling(temperature=1, top_k=3)] * 2
    samplings = samplings[:6]
    together = draw(logits, samplings, [9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6]).tolist()
    alone = [
        draw(logits[i : i + 1], samplings[i : i + 1], [[9, 8, 7, 6, 5, 4][i]], [i + 1]).item() for i in range(6)
    ]  # fmt: skip
    assert together == alone


def test_what_a_row_may_draw_is_the_same_to_the_bit_whatever_stands_beside_it() -> None:
    # scores of half precision, among which there are many ties, and filters that look at the best 3, 40 or all of them
    torch.manual_seed(3)
    logits = (torch.randn(24, 3000) * 3).bfloat16().float()
    filters = [{"top_k": 3}, {"top_k": 40, "top_p": 0.9}, {"top_p": 0.8}, {"top_k": 7, "min_p": 0.2}, {"min_p": 0.01}, {}]
    samplings = [Sampling(temperature=0.7, **filters[i % 6]) for i in range(24)]
    together = probabilities(logits, samplings)
    for i in range(24):
        assert torch.equal(together[i], probabilities(logits[i : i + 1], samplings[i : i + 1])[0]), samplings[i]


def test_tokens_as_likely_as_the_last_one_kept_are_kept_too() -> None:
    tied = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]]))
    for filters in ({"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.6}):
        kept = probabilities(tied, [Sampling(temperature=1, **filters)])
        assert kept.tolist()[0] == pytest.approx([0.4, 0.2, 0.2, 0.2])


def test_scores_that_are_no_numbers_draw_a_token_all_the_same() -> None:
    broken = torch.full((2, 7), torch.nan)
    tokens = draw(broken, [Sampling(temperature=1), Sampling(temperature=1, top_p=0.5)], [1, 2], [0, 0])
    assert ((tokens >= 0) & (tokens < 7)).all()


def test_the_penalty_matches_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(2)
    logits, ids = torch.randn(2, 20), torch.tensor([[1, 2, 2], [4, 5, 6]])
    seen = torch.zeros(2, 20, dtype=torch.bool).scatter(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    torch.testing.assert_close(penalised(logits, seen, [1.3, 1.3]), expected)
