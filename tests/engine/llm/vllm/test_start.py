from __future__ import annotations

import pytest

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.vllm.start import _defaults
from caiflow.engine.run.on_ray.nodes import Node
from caiflow.engine.run.on_ray.placing import engine_gpus


def test_exact_answers_take_nothing_from_a_cache_that_others_filled(tiny_source: ModelSource) -> None:
    found = {exact: _defaults(tiny_source._replace(exact=exact), on_cpu=False) for exact in (False, True)}
    assert {exact: chosen.pop("enable_prefix_caching") for exact, chosen in found.items()} == {False: True, True: False}
    assert found[True] == found[False]


@pytest.mark.parametrize(
    ("gpus", "arguments", "chosen"),
    [
        (0.5, {}, {"gpu_memory_utilization": 0.46}),
        (1, {}, {}),
        (4, {}, {"tensor_parallel_size": 4}),
        (4, {"pipeline_parallel_size": 2}, {"tensor_parallel_size": 2}),
        (4, {"pipeline_parallel_size": 4}, {"tensor_parallel_size": 1}),
    ],
)
def test_an_engine_takes_its_gpus_and_no_more(
    tiny_source: ModelSource, gpus: float, arguments: dict[str, int], chosen: dict[str, float]
) -> None:
    source = tiny_source._replace(options={"num_gpus": gpus, "engine_args": arguments})
    found = _defaults(source, on_cpu=False)
    names = ("gpu_memory_utilization", "tensor_parallel_size")
    assert {name: found[name] for name in names if name in found} == chosen
    assert "gpu_memory_utilization" not in _defaults(source, on_cpu=True)


def test_a_pipeline_wants_a_gpu_for_each_of_its_parts(tiny_source: ModelSource) -> None:
    arguments = {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}
    assert engine_gpus(tiny_source._replace(options={"engine_args": arguments}), [Node("a", "127.0.0.1", 1, 8)]) == 6
