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

import pytest
from packaging.requirements import Requirement

import caiflow.examples
from caiflow.engine.commands import serve
from caiflow.engine.commands.serve import server_command
from caiflow.engine.errors import PlanError
from caiflow.engine.store.journal import Journal
from support.ports import free_port

TINY = Path(caiflow.examples.__path__[0]) / "tiny" / "model"
QUESTION = [{"role": "user", "content": "How do I water the roses?"}]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return a finished run whose step `tuned` made the tiny model."""
    folder = tmp_path / "run"
    with Journal(folder) as journal:
        journal.emit("run_started", name="cai", steps=[{"name": "tuned", "op": "sft"}, {"name": "red", "op": "load"}])
        for name in ("tuned", "red"):
            journal.emit("step_done", step=name, status="done")
        journal.emit("run_done", status="done")
    (folder / "steps" / "red").mkdir(parents=True)
    (folder / "steps" / "red" / "part-00000.parquet").touch()
    (folder / "steps" / "tuned").symlink_to(TINY)
    return folder


@contextlib.contextmanager
def serving(run_dir: Path, engine: str, **variables: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "caiflow.engine.cli", "serve", str(run_dir), "tuned"]
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
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5)
            return
        time.sleep(0.3)
    pytest.fail(f"no server: {log.read_text()[-2000:]}")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.soak])])
def test_the_openai_client_gets_the_models_own_answer(run_dir: Path, tmp_path: Path, engine: str) -> None:
    from openai import OpenAI

    hub = tmp_path / "hugging" / "face"
    with serving(run_dir, engine, HF_HOME=str(hub)) as port:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
        listed = client.models.list().data
        answer = client.chat.completions.create(model="tuned", messages=QUESTION, temperature=0, max_tokens=40)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == own_answer()
    assert [model.id for model in listed] == (["tuned"] if engine == "vllm" else [])
    assert (hub / "hub").is_dir()


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
    with pytest.raises(PlanError, match=r"uvicorn, openai; pip install 'caiflow\[serve\]'"):
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
