"""The comparison of engines itself: it forgives what rounding does, and nothing else."""

from __future__ import annotations

import pytest

from caiflow.engine.llm.base import ModelSource, Request, Sampling
from caiflow.engine.llm.load import load_engine
from support.agreement import explains
from support.asking import text


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=8), Sampling(temperature=1, top_p=0.9, max_tokens=8)])
def test_the_models_own_answer_is_explained_and_another_seeds_is_not(sampling: Sampling, tiny_source: ModelSource) -> None:
    engine = load_engine(tiny_source)
    request = Request("Mix flour", sampling, seed=3)
    other = text(engine, Request("Mix flour", Sampling(temperature=1, max_tokens=8), seed=4))
    assert explains(tiny_source, request, text(engine, request))
    assert not explains(tiny_source, request, other)
    assert not explains(tiny_source, request, text(engine, request)._replace(text="Mix"))
