"""An engine that hangs is noticed, ended and begun again, and what it was asked is answered all the same; a slow one isn't."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.pulse import FIRST_S
from caiflow.engine.run.on_ray.actors import EngineActor, RayLink
from caiflow.engine.run.on_ray.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.kill]
FEW = Sampling(max_tokens=4)


def asked_as_it_hangs(link: RayLink, hang: Callable[[], object]) -> tuple[list[Answer], float, float, bool]:
    """Ask one thing, have the engine hang, ask six more.

    Returns the answers, after how many seconds it was noticed and answered, and whether another process answered.
    """

    async def asked() -> tuple[list[Answer], float, float, bool]:
        async with EngineClient([link]) as client:
            assert isinstance(await client.ask(Request("one", FEW)), Completion)
            before = link.process
            hang()
            begun, noticed_s = time.monotonic(), 0.0
            answers = asyncio.gather(*(client.ask(Request(f"two {n}", FEW)) for n in range(6)))
            while not answers.done():
                if not noticed_s and "begun again" in client.waiting:
                    noticed_s = time.monotonic() - begun
                await asyncio.sleep(0.05)
            return answers.result(), noticed_s, time.monotonic() - begun, link.process != before

    found = asyncio.run(asyncio.wait_for(asked(), 400))
    print(f"noticed after {found[1]:.1f} s, answered after {found[2]:.1f} s")
    return found


def assert_begun_again(answers: list[Answer], noticed_s: float, again_s: float, another: bool) -> None:
    assert another
    assert all(isinstance(answer, Completion) for answer in answers)
    assert 0 < noticed_s < 60
    assert again_s < 180


@pytest.mark.soak
def test_a_stopped_engine_is_begun_again(cluster: Cluster, model: ModelSource) -> None:
    links = cluster.engine(model, "small", "client")
    assert links is not None
    (link,) = links
    assert_begun_again(*asked_as_it_hangs(link, lambda: os.kill(link.process[1], signal.SIGSTOP)))


def loop(how: str, until: Path) -> None:
    """Come back once a file is there: in a library that lets others go on, or never, in one that holds the interpreter."""
    if how == "holding the interpreter":
        re.fullmatch("(a|a)+b", "a" * 60)
    while not until.exists():
        threading.Event().wait(0.05)


def hanging_actor(how: str, signs: Path, times: int = 1, first_s: float = FIRST_S) -> Any:
    """Return an engine's actor whose library doesn't come back from a pass, so many times, once `signs` has a file `hang`.

    Its first passes may take `first_s` seconds.
    """
    import ray

    class HangingEngineActor(EngineActor):
        def ready(self, source: ModelSource) -> tuple[int, str, float]:
            found = super().ready(source)
            assert self._host is not None
            engine: Any = self._host._engine
            engine.pulse._first_s = first_s
            inside, name = (engine._model, "forward") if source.engine == "transformers" else (engine._engine, "step")
            compute = getattr(inside, name)

            def hang(*args: Any, **kwargs: Any) -> Any:
                hung = len(list(signs.glob("hung-*")))
                if (signs / "hang").exists() and hung < times:
                    (signs / f"hung-{hung}").touch()
                    loop(how, signs / "enough")
                return compute(*args, **kwargs)

            setattr(inside, name, hang)
            return found

    return ray.remote(HangingEngineActor).options(num_cpus=0, max_concurrency=64, max_restarts=5).remote()


BUNDLED = ModelSource(path=str(Path(__file__).parents[4] / "examples/tiny/model"), identity="tiny")
WAYS = [
    pytest.param("transformers", "letting others go on", marks=pytest.mark.campaign),
    ("transformers", "holding the interpreter"),
    pytest.param("vllm", "holding the interpreter", marks=pytest.mark.vllm),
]
"""Each engine, and each way of not coming back."""


@pytest.mark.soak
@pytest.mark.parametrize(("engine", "how"), WAYS)
def test_an_engine_whose_library_does_not_come_back_is_begun_again(
    cluster: Cluster, model: ModelSource, tmp_path: Path, engine: str, how: str
) -> None:
    source = BUNDLED if engine == "vllm" else model  # vLLM has no kernel on CPUs for heads as small as the other's
    link = RayLink(hanging_actor(how, tmp_path), "engine/0", source._replace(engine=engine), "client")
    link.hangs_s = 2.0
    assert_begun_again(*asked_as_it_hangs(link, (tmp_path / "hang").touch))


@pytest.mark.soak
def test_an_engine_that_hangs_again_once_begun_again_fails_in_words(
    cluster: Cluster, model: ModelSource, tmp_path: Path
) -> None:
    actor = hanging_actor("letting others go on", tmp_path, times=9, first_s=2.0)
    link = RayLink(actor, "engine/0", model._replace(engine="transformers"), "client")
    link.hangs_s = 1.0
    answers, *_ = asked_as_it_hangs(link, (tmp_path / "hang").touch)
    assert all(isinstance(answer, EngineError) and "hung again once it was begun again" in str(answer) for answer in answers)
    assert len(list(tmp_path.glob("hung-*"))) == 2


@pytest.mark.soak
def test_a_first_pass_that_takes_long_is_waited_for(cluster: Cluster, model: ModelSource, tmp_path: Path) -> None:
    link = RayLink(hanging_actor("letting others go on", tmp_path), "engine/0", model._replace(engine="transformers"), "client")
    link.hangs_s = 0.5
    (tmp_path / "hang").touch()

    async def asked() -> bool:
        async with EngineClient([link]) as client:
            before = link.process
            answer = asyncio.ensure_future(client.ask(Request("one", FEW)))
            await asyncio.wait({answer}, timeout=10)  # what compiles takes longer still
            (tmp_path / "enough").touch()
            return isinstance(await answer, Completion) and link.process == before

    assert asyncio.run(asyncio.wait_for(asked(), 300))
