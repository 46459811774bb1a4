from __future__ import annotations

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.vllm.start import _defaults


def test_exact_answers_take_nothing_from_a_cache_that_others_filled(tiny_source: ModelSource) -> None:
    found = {exact: _defaults(tiny_source._replace(exact=exact), on_cpu=False) for exact in (False, True)}
    assert {exact: chosen.pop("enable_prefix_caching") for exact, chosen in found.items()} == {False: True, True: False}
    assert found[True] == found[False]
