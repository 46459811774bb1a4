"""Several engines of one model: one that dies for good costs no answer, and all together keep within what they may spend."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.run.on_ray.cluster import Cluster
from support.bad_server import bad_server, said
from support.commands import run_here

pytestmark = [pytest.mark.slow, pytest.mark.soak]
REQUESTS, BEFORE = 3_000, 200
ONE_TOKEN = Sampling(max_tokens=1)


@pytest.mark.kill
def test_a_replica_that_dies_for_good_costs_no_answer(
    cluster: Cluster, model: ModelSource, figure: Callable[[str, str], None]
) -> None:
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
            return await asyncio.gather(*tasks), client.told()

    answers, told = asyncio.run(asyncio.wait_for(asked(), 500))
    failed = [answer for answer in answers if not isinstance(answer, Completion)]
    figure("dead replica", f"{len(failed)} of {REQUESTS:,} failed")
    assert not failed
    assert len(told) == 1


@pytest.mark.kill
def test_calls_of_a_replica_that_stalls_are_answered_by_the_other_and_count_once(cluster: Cluster, model: ModelSource) -> None:
    links = cluster.engine(model._replace(options={**model.options, "replicas": 2, "num_cpus": 1}), "small", "client")
    assert links is not None

    async def asked() -> tuple[list[Answer], list[Answer], list[str], int, int]:
        async with EngineClient(links) as client:
            before = await asyncio.gather(*(client.ask(Request(f"word {n}", ONE_TOKEN)) for n in range(600)))
            stalls = links[0].process[1]
            os.kill(stalls, signal.SIGSTOP)
            try:
                found = await asyncio.gather(*(client.ask(Request(f"word {n}", ONE_TOKEN)) for n in range(16)))
            finally:
                os.kill(stalls, signal.SIGCONT)
            return before, found, client.told(), client.calls, client.late.twice

    before, found, told, calls, twice = asyncio.run(asyncio.wait_for(asked(), 300))
    assert found == before[:16]
    assert (calls, twice > 0, len(told)) == (616, True, 1)
    assert "asked of another of its engines, too" in told[0]  # and none was waited for until its engine counted as silent
    print(f"{twice} of 16 calls were asked twice")


CAPPED = """\
caiflow: 1
models: {served: {source: m, base_url: "URL", replicas: 4, max_calls: 100}}
steps:
  rows:   {op: load, source: rows.jsonl}
  answer: {op: generate, input: rows, model: served, max_failed: 300, resources: {workers: 3}}
"""


def test_four_engines_of_three_shards_together_make_as_many_calls_as_are_allowed(
    tmp_path: Path, ray_address: str, figure: Callable[[str, str], None]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(300)))
    with bad_server() as server:
        server.reply = lambda body, n: said("fine")
        spec = tmp_path / "spec.yaml"
        spec.write_text(CAPPED.replace("URL", server.url))
        made = run_here(ray_address, spec, tmp_path / "run", tmp_path / "home")
        figure("capped", f"{len(server.calls)} calls")
        assert (len(server.calls), made["steps"]["answer"]["rows_out"]) == (100, 100)
