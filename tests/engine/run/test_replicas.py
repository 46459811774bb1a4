"""Several engines of one model: one that dies for good costs no answer."""

from __future__ import annotations

import asyncio

import pytest

from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.run.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.kill]
REQUESTS, BEFORE = 3_000, 200
ONE_TOKEN = Sampling(max_tokens=1)


def test_a_replica_that_dies_for_good_costs_no_answer(cluster: Cluster, model: ModelSource) -> None:
    import ray

    links = cluster.engine(model._replace(options={**model.options, "replicas": 2}), "small", "client")
    assert links is not None

    async def asked() -> tuple[list[Answer], list[str]]:
        async with EngineClient(links) as client:
            tasks = [asyncio.ensure_future(client.ask(Request(f"word {n}", ONE_TOKEN))) for n in range(REQUESTS)]
            while sum(task.done() for task in tasks) < BEFORE:
                await asyncio.sleep(0.01)
            assert sum(task.done() for task in tasks) < REQUESTS
            ray.kill(links[0]._actor, no_restart=True)
            return await asyncio.gather(*tasks), client.given_up()

    answers, told = asyncio.run(asyncio.wait_for(asked(), 500))
    failed = [answer for answer in answers if not isinstance(answer, Completion)]
    print(f"{len(failed)} of {REQUESTS:,} requests failed with one of two engines dead for good")
    assert not failed
    assert len(told) == 1
