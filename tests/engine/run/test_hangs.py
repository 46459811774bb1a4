"""An engine's process that hangs is noticed, ended and begun again, and what it was asked is answered all the same."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from caiflow.engine.llm.base import Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.run.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.kill]


@pytest.mark.soak
@pytest.mark.parametrize("hangs_s", [2.0, None])
def test_a_stopped_engine_is_begun_again(ray_address: str, model: ModelSource, hangs_s: float | None) -> None:
    cluster = Cluster(ray_address)
    cluster.start()
    links = cluster.engine(model, "small", f"client-{hangs_s}")
    assert links is not None
    (link,) = links
    link.hangs_s = hangs_s or link.hangs_s

    async def asked() -> tuple[tuple[str, int], float, float]:
        async with EngineClient([link]) as client:
            assert isinstance(await client.ask(Request("one", Sampling(max_tokens=4))), Completion)
            stopped = link.process
            os.kill(stopped[1], signal.SIGSTOP)
            begun, noticed = time.monotonic(), 0.0
            answers = asyncio.gather(*(client.ask(Request(f"two {n}", Sampling(max_tokens=4))) for n in range(6)))
            while not answers.done():
                if not noticed and "begun again" in client.waiting:
                    noticed = time.monotonic() - begun
                await asyncio.sleep(0.05)
            assert all(isinstance(answer, Completion) for answer in answers.result())
            return stopped, noticed, time.monotonic() - begun

    try:
        stopped, noticed_s, again_s = asyncio.run(asyncio.wait_for(asked(), 300))
        print(f"noticed after {noticed_s:.1f} s, answered after {again_s:.1f} s")
        assert link.process != stopped
        assert 0 < noticed_s < 60
        assert again_s < 180
    finally:
        cluster.close()
