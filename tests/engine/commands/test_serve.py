"""`caiflow serve`: the real servers, asked by the openai client; and the commands for adapters."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import caiflow.examples
from caiflow.engine.commands import serve
from caiflow.engine.commands.announce import announce
from caiflow.engine.commands.serve import server_command
from caiflow.engine.errors import PlanError
from caiflow.engine.store.journal import Journal
from support.ports import free_port

TINY = Path(caiflow.examples.__path__[0]) / "tiny" / "model"
QUESTION = [{"role": "user", "content": "How do I water the roses?"}]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return a finished run whose steps `tuned` and `tuned@arm` made the tiny model."""
    folder = tmp_path / "run"
    with Journal(folder) as journal:
        journal.emit("run_started", name="cai", steps=[{"name": name, "op": "sft"} for name in ("tuned", "tuned@arm", "red")])
        for name in ("tuned", "tuned@arm", "red"):
            journal.emit("step_done", step=name, status="done")
        journal.emit("run_done", status="done")
    (folder / "steps" / "red").mkdir(parents=True)
    (folder / "steps" / "red" / "part-00000.parquet").touch()
    for name in ("tuned", "tuned@arm"):
        (folder / "steps" / name).symlink_to(TINY)
    return folder


@contextlib.contextmanager
def serving(run_dir: Path, engine: str, step: str = "tuned", **variables: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "caiflow.engine.cli", "serve", str(run_dir), step]
    command += ["--engine", engine, "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **variables}
    log = run_dir / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        wait(port, server, log)
        yield port
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=15)


def wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    until = time.monotonic() + 150
    while time.monotonic() < until and server.poll() is None:
        if "\nserving tuned" in log.read_text():
            assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).status_code == 200
            return
        time.sleep(0.3)
    pytest.fail(f"no server: {log.read_text()[-2000:]}")


@pytest.mark.slow
def test_transformers_server_does_what_it_is_asked_or_refuses_it(run_dir: Path, tmp_path: Path) -> None:
    from openai import BadRequestError, NotFoundError, OpenAI

    with serving(run_dir, "transformers", "tuned@arm", HF_HOME=str(tmp_path / "hugging")) as port:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)

        def ask(**more: Any) -> Any:
            return client.chat.completions.create(**{"model": "tuned@arm", "messages": QUESTION, "max_tokens": 40, **more})

        greedy = ask(temperature=0)
        assert greedy.choices[0].message.content == own_answer()
        assert (greedy.model, [model.id for model in client.models.list().data]) == ("tuned@arm", ["tuned@arm"])
        drawn = [ask().choices[0].message.content for _ in range(8)]
        assert len(set(drawn)) > 1, "without a temperature it is 1"
        assert ask(seed=3).choices[0].message.content == ask(seed=3).choices[0].message.content
        text = own_answer()
        stop = text[len(text) // 2 :][:5]
        cut = ask(temperature=0, stop=[stop, "never said"]).choices[0]
        assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")
        short = ask(temperature=0, max_tokens=None, max_completion_tokens=4)
        assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (4, "length")
        assert ask(temperature=0, n=1, logprobs=False, user="me").choices[0].message.content == text
        streamed = "".join(part.choices[0].delta.content or "" for part in ask(temperature=0, stream=True) if part.choices)
        assert streamed.strip() == text
        refused: list[dict[str, Any]] = [{"n": 2}, {"logprobs": True}, {"presence_penalty": 1}, {"stop": "x", "stream": True}]
        for asked in [*refused, {"extra_body": {"prompt_logprobs": 1}}, {"model": "tuned"}]:
            with pytest.raises(BadRequestError, match=r"isn't supported|no model 'tuned' here"):
                ask(**asked)
        with pytest.raises(NotFoundError, match="isn't served"):
            client.responses.create(model="tuned@arm", input="hello")


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.soak
def test_the_openai_client_gets_the_models_own_answer_of_vllm(run_dir: Path, tmp_path: Path) -> None:
    from openai import OpenAI

    with serving(run_dir, "vllm", HF_HOME=str(tmp_path / "hugging" / "face")) as port:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
        listed = client.models.list().data
        answer = client.chat.completions.create(model="tuned", messages=QUESTION, temperature=0, max_tokens=40)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == own_answer()
    assert [model.id for model in listed] == ["tuned"]


def own_answer() -> str:
    """Return the greedy answer of the model itself, through its saved chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_what_the_server_lacks_is_named_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: name == "fastapi")
    with pytest.raises(PlanError, match=r"uvicorn, openai; pip install 'fastapi\S+ 'uvicorn\S+ 'openai\S+'"):
        server_command(TINY, server="transformers")


def test_the_extra_has_all_that_the_server_imports() -> None:
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in ("serve", "dev"):
        named = {Requirement(line).name for line in extras["optional-dependencies"][extra]}
        assert set(serve.SERVER_LIBRARIES) <= named


def test_rows_cant_be_served(run_dir: Path) -> None:
    command = [sys.executable, "-m", "caiflow.engine.cli", "serve", str(run_dir), "red"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "caiflow: red: its output is rows, not a model; name a step that trains one\n"


def test_an_adapter_is_served_over_its_base_by_vllm_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(PlanError, match="merge"):
        server_command(tmp_path, server="transformers")
    if find_spec("vllm"):
        arguments = server_command(tmp_path, server="vllm", port=1234).arguments
        assert arguments[3:5] == ("--model", "org/base")
        assert f"{tmp_path.name}={tmp_path}" in arguments
        assert arguments[-2:] == ("--port", "1234")


def test_a_server_that_ends_before_it_answers_is_not_announced(capfd: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not announce(ended.pid, f"http://127.0.0.1:{free_port()}/", "serving")
    assert capfd.readouterr().err == ""
