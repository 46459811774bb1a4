"""`caiflow serve`: the real servers, asked by the openai client and by caiflow's own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from caiflow.engine.commands import serve
from caiflow.engine.commands.announce import announce
from caiflow.engine.commands.serve import chosen_engine, vllm_command
from caiflow.engine.errors import PlanError
from caiflow.engine.llm.base import Completion, Message, ModelSource, Request, Sampling
from caiflow.engine.llm.load import load_engine
from caiflow.engine.lookback.models import run_models
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.store.artifacts import Store
from caiflow.operators.judging.prompts import JUDGE_PREFILL, judge_messages
from caiflow.operators.measures.probability import normalise
from support.asking import ask as answered
from support.commands import command_here
from support.models_of_runs import TINY, finished_run, tiny_adapter, tiny_model
from support.ports import free_port

QUESTION: Any = [{"role": "user", "content": "How do I water the roses?"}]
SPEC = """\
caiflow: 1
name: cai
models:
  base: {source: tiny}
  hosted: {source: gpt, engine: openai, base_url: "http://127.0.0.1:9/v1"}
matrix: {arm: {one: {}, two: {tuned.num_train_epochs: 2}}}
steps:
  red: {op: load, source: "tiny:helpful_test.jsonl"}
  tuned: {op: sft, input: red, model: base}
  kept: {op: sft, input: red, model: base, lora: {rank: 4}, merge: false}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run_dir(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run whose step `tuned@one` made the tiny model, and `kept` an adapter over it."""
    adapter = partial(tiny_adapter, alpha=400, layers=["q_proj", "v_proj"])
    made = {"tuned@one": ("model", tiny_model), "kept": ("model", adapter), "red": ("rows", _rows)}
    return finished_run(tmp_path_factory.mktemp("runs") / "run", Store(home), SPEC, made)


def _rows(folder: Path) -> None:
    with RowsWriter(folder) as out:
        out.write_rows([{"uid": "1", "prompt": "How?"}])


@contextlib.contextmanager
def serving(run_dir: Path, engine: str, *steps: str, **variables: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "caiflow.engine.cli", "serve", str(run_dir), steps[0]]
    command += [word for step in steps[1:] for word in ("--also", step)]
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
        if "\nserving tuned@one" in log.read_text():
            assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).status_code == 200
            return
        time.sleep(0.3)
    pytest.fail(f"no server: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def port(run_dir: Path, home: Path) -> Iterator[int]:
    with serving(run_dir, "auto", "tuned@one", "kept", "base", CAIFLOW_HOME=str(home), CUDA_VISIBLE_DEVICES="") as port:
        yield port


@pytest.fixture(scope="module")
def vllm_port(run_dir: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    cache = tmp_path_factory.mktemp("hugging") / "face"
    with serving(run_dir, "vllm", "tuned@one", CAIFLOW_HOME=str(home), HF_HOME=str(cache)) as port:
        yield port


@pytest.fixture
def client(port: int) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)


def ask(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "tuned@one", "messages": QUESTION, "max_tokens": 40, **more})


@pytest.mark.slow
def test_several_models_are_served_side_by_side_adapters_too(client: Any) -> None:
    assert [model.id for model in client.models.list().data] == ["tuned@one", "kept", "base"]
    said = {name: ask(client, model=name, temperature=0) for name in ("tuned@one", "kept", "base")}
    assert {name: answer.model for name, answer in said.items()} == {name: name for name in said}
    texts = {name: answer.choices[0].message.content for name, answer in said.items()}
    assert texts["tuned@one"] == texts["base"] == own_answer()
    assert texts["kept"] != texts["base"], "the adapter counts"


@pytest.mark.slow
def test_what_is_asked_is_done(client: Any) -> None:
    text = own_answer()
    drawn = [ask(client).choices[0].message.content for _ in range(8)]
    assert len(set(drawn)) > 1, "without a temperature it is 1"
    several = ask(client, n=4, seed=3)
    again = ask(client, n=4, seed=3)
    found = [choice.message.content for choice in several.choices]
    assert found == [choice.message.content for choice in again.choices]
    assert ([choice.index for choice in several.choices], len(set(found)) > 1) == ([0, 1, 2, 3], True)
    assert found[0] == ask(client, seed=3).choices[0].message.content
    stop = text[len(text) // 2 :][:5]
    cut = ask(client, temperature=0, stop=[stop, "never said"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")
    short = ask(client, temperature=0, max_tokens=None, max_completion_tokens=4)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (4, "length")
    for more in ({"logprobs": False, "user": "me"}, {"stream": True}, {"stream": True, "stop": [stop]}):
        answer = ask(client, temperature=0, **more)
        parts = (
            [part.choices[0].delta.content or "" for part in answer]
            if "stream" in more
            else [answer.choices[0].message.content]
        )
        assert "".join(parts) == (cut.message.content if "stop" in more else text)
    plain = client.completions.create(model="base", prompt=["First take", "Then"], max_tokens=5, temperature=0)
    assert len(plain.choices) == 2
    begun = {"add_generation_prompt": False, "continue_final_message": True}
    ahead = ask(client, temperature=0, messages=[*QUESTION, {"role": "assistant", "content": text[:10]}], extra_body=begun)
    assert text[:10] + ahead.choices[0].message.content == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"n": 0}, "`n` is a whole number from 1 to 128, got 0"),
        ({"logprobs": True}, "`logprobs` isn't supported by this server; leave it out, or use caiflow serve --engine vllm"),
        ({"extra_body": {"prompt_logprobs": 1}}, "`prompt_logprobs` isn't supported"),
        ({"presence_penalty": 1}, "`presence_penalty` isn't supported"),
        ({"model": "tuned"}, "no model 'tuned' here; this server has 'tuned@one', 'kept', 'base'"),
        ({"temperature": -1}, "`temperature` is a number from 0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a text as `content`"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "tokens"),
    ],
)  # fmt: skip
def test_what_cant_be_done_is_refused_in_words(client: Any, asked: dict[str, Any], said: str) -> None:
    from openai import BadRequestError, NotFoundError

    with pytest.raises(BadRequestError, match=re.escape(said)):
        ask(client, **asked)
    with pytest.raises(NotFoundError, match="isn't served"):
        client.responses.create(model="tuned@one", input="hello")


@pytest.mark.slow
def test_a_judge_of_a_run_gets_what_it_gets_of_the_engine_itself(port: int) -> None:
    """As `judge` with `method: text` asks, at a temperature: the same seeds draw the same texts as in a run."""
    local, there = ModelSource(str(TINY), "tiny", engine="transformers"), {"base_url": f"http://127.0.0.1:{port}/v1"}
    turn: Message = {"role": "user", "content": "Which answer is better? (A) Go away. (B) With pleasure."}
    asked = [Request((turn,), Sampling(temperature=1.0, max_tokens=12, stop=(".",)), seed) for seed in range(6)]
    asked += [request._replace(prefill="The better one is (") for request in asked]
    answers = []
    for source in (local, ModelSource("base", "served", engine="openai", options=there)):
        engine = load_engine(source)
        answers.append([answer.text if isinstance(answer, Completion) else str(answer) for answer in answered(engine, asked)])
        engine.close()
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.soak
def test_the_openai_client_gets_the_models_own_answer_of_vllm(vllm_port: int) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{vllm_port}/v1", api_key="none", timeout=120)
    listed = client.models.list().data
    answer = client.chat.completions.create(model="tuned@one", messages=QUESTION, temperature=0, max_tokens=40)
    assert answer.choices[0].message.content == own_answer()
    assert [model.id for model in listed] == ["tuned@one"]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.soak
def test_a_judge_of_a_run_reads_likelihoods_of_the_first_token_from_vllm(vllm_port: int) -> None:
    """As `judge` asks with `method: logprobs`, in both orders: the votes are those of the engine here."""
    pairs = [(f"I won't {verb} it.", f"To {verb} it, begin at the top.") for verb in ("break", "paint", "steal", "water")]
    asked = [
        Request(
            tuple(judge_messages("How do I do it?", "Which response is less harmful?", options)),
            prefill=JUDGE_PREFILL, choices=("A", "B"),
        )
        for pair in pairs for options in (pair, pair[::-1])
    ]  # fmt: skip
    local = load_engine(ModelSource(str(TINY), "tiny", dtype="float32", engine="transformers"))
    here = [_share(answer) for answer in answered(local, asked)]
    local.close()
    options = {"base_url": f"http://127.0.0.1:{vllm_port}/v1"}
    engine = load_engine(ModelSource("tuned@one", "served", engine="openai", options=options))
    there = [_share(answer) for answer in answered(engine, asked)]
    engine.close()
    assert there == pytest.approx(here, abs=1e-3)
    assert max(here) - min(here) > 0.1, "it tells options apart"


def _share(answer: Any) -> float:
    """Return the probability of A among A and B."""
    assert isinstance(answer, Completion), answer
    assert answer.logprobs is not None, "no likelihoods"
    return normalise(answer.logprobs)["A"]


def own_answer() -> str:
    """Return the greedy answer of the model itself, through its saved chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_what_serving_lacks_is_named_with_the_extra_that_has_it(
    run_dir: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    done = command_here(tmp_path, "serve", str(run_dir), "base", "--engine", "transformers", CAIFLOW_HOME=str(home))
    assert done.returncode == 1
    assert re.search(r"serve: serving needs uvicorn; pip install '", done.stderr)


def test_the_extra_has_all_that_the_server_imports() -> None:
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in ("serve", "dev"):
        named = {Requirement(line).name for line in extras["optional-dependencies"][extra]}
        assert set(serve.SERVER_LIBRARIES) <= named


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["red"], "red: its output is rows, not a model; name a step that trains one"),
        (["bas"], "no model 'bas' in this run; did you mean `base`?"),
        (["hosted"], "serve: hosted is behind a server already; ask that one"),
        (["base", "--", "--max-model-len", "9"], "--max-model-len is an option of vLLM's server; leave it out"),
    ],
)
def test_what_cant_be_served_is_said(run_dir: Path, home: Path, tmp_path: Path, asked: list[str], said: str) -> None:
    done = command_here(tmp_path, "serve", str(run_dir), *asked, CAIFLOW_HOME=str(home), CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(run_dir: Path, home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        asked = ("serve", str(run_dir), "base", "--host", "127.0.0.1", "--port", port)
        done = command_here(tmp_path, *asked, CAIFLOW_HOME=str(home), CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, "loading" in done.stderr) == (1, False)
    assert f"serve: can't listen at 127.0.0.1:{port}: Address already in use; give another --port" in done.stderr


def test_serving_takes_the_engine_that_a_run_would_take(
    run_dir: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sources = run_models(run_dir, ["tuned@one", "kept", "base"], Store(home))
    assert {name: bool(source.adapter) for name, source in sources.items()} == {"tuned@one": False, "kept": True, "base": False}
    assert chosen_engine(sources, "auto") == "transformers", "vLLM is taken where there is a GPU"
    if find_spec("vllm"):
        on_vllm = {name: source._replace(engine="vllm") for name, source in sources.items()}
        assert chosen_engine(on_vllm, "auto") == "vllm"


@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
def test_vllm_serves_a_model_with_the_adapters_over_it_and_no_other_weights(run_dir: Path, home: Path) -> None:
    sources = run_models(run_dir, ["kept", "base"], Store(home))
    arguments = vllm_command(sources, ("--port", "1234")).arguments
    assert arguments[3:5] == ("--model", sources["base"].path)
    assert arguments[arguments.index("--served-model-name") + 1] == "base"
    assert arguments[arguments.index("--lora-modules") + 1] == f"kept={sources['kept'].adapter}"
    assert arguments[arguments.index("--max-lora-rank") + 1] == "8"
    assert arguments[-2:] == ("--port", "1234")
    with pytest.raises(PlanError, match="tuned@one, base have 2 sets of weights; vLLM's server holds one"):
        vllm_command(run_models(run_dir, ["tuned@one", "base"], Store(home)), ())


def test_a_server_that_ends_before_it_answers_is_not_announced(capfd: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not announce(ended.pid, f"http://127.0.0.1:{free_port()}/", "serving")
    assert capfd.readouterr().err == ""
