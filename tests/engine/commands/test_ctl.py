"""Holding a run that goes on: a real run whose model is a server on loopback that notes every call."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Request
from caiflow.engine.llm.host import EngineHost
from caiflow.engine.llm.served.budget import Budget
from caiflow.engine.llm.served.pace import Pace
from caiflow.engine.store.checkpoints import COMPLETE
from caiflow.engine.store.controls import CONTROL, Controls, read_controls, write_controls
from caiflow.engine.store.spending import Account, Most
from support.commands import command_here
from support.kills import end_started, start, without_token
from support.scripted import ScriptedEngine

SPEC = """\
caiflow: 1
name: held
models: {{m: {{source: named, base_url: "http://127.0.0.1:{port}/v1", concurrency: 8}}}}
steps:
  rows:   {{op: load, source: rows.jsonl}}
  answer: {{op: generate, input: rows, model: m, retries: 0, concurrency: 8, max_failed: 0}}
"""


class Server(ThreadingHTTPServer):
    """Answers after a while; `began` has the moment of each call, `most` how many were under way at once since it was reset."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.began: list[float] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()


class _Answering(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._say({"data": [{"id": "named"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.began.append(time.monotonic())
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        time.sleep(0.15)
        with self.server.lock:
            self.server.under_way -= 1
        message = {"role": "assistant", "content": f"Yes, number {len(self.server.began)}."}
        usage = {"prompt_tokens": 3, "completion_tokens": 4}
        self._say({"model": "named", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})

    def _say(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    end_started()


def until(what: Any, run: Popen[bytes], patience_s: float = 60.0) -> None:
    end = time.monotonic() + patience_s
    while not what():
        assert run.poll() is None, "the run has ended"
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.soak
def test_a_real_run_rests_goes_on_and_holds_to_other_limits(server: Server, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"Number {n}?"}) + "\n" for n in range(6000)))
    (tmp_path / "spec.yaml").write_text(SPEC.format(port=server.server_address[1]))
    home, out = tmp_path / "home", tmp_path / "out"

    def ctl(*words: str) -> dict[str, Any]:
        done = command_here(tmp_path, "ctl", "out", *words, "--json", **without_token(), CAIFLOW_HOME=str(home))
        assert done.returncode == 0, done.stdout + done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        assert told["taken"]
        return told

    run = start(tmp_path / "spec.yaml", out, home, "--allow-host", f"127.0.0.1:{server.server_address[1]}")
    until(lambda: len(server.began) > 40, run)
    assert ctl("pause")["paused"]
    until(lambda: time.monotonic() - server.began[-1] > 2.0, run)  # those that had left have come
    paused = len(server.began)
    time.sleep(2.5)
    assert len(server.began) == paused < 6000
    assert not ctl("resume")["paused"]
    until(lambda: len(server.began) > paused + 20, run)
    assert 2 < server.most <= 8
    ctl("concurrency", "2")
    time.sleep(1.0)
    server.most = 0
    before = len(server.began)
    until(lambda: len(server.began) > before + 10, run)
    assert server.most == 2
    cap = len(server.began) + 10
    assert ctl("budget", "--max-calls", str(cap))["models"] == {"m": {"concurrency": 2, "max_calls": cap}}
    assert run.wait(timeout=60) == 1
    assert len(server.began) <= cap
    record = json.loads((out / "run.json").read_text())
    assert (
        f"the spending cap leaves no room for another call: {cap} of {cap} calls are used" in record["steps"]["answer"]["error"]
    )
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [event["paused"] for event in events if event["event"] == "control"] == [True, False, False, False]
    assert "run: paused by ctl" in (out / "console.txt").read_text()
    done = command_here(tmp_path, "ctl", "out", "pause", **without_token(), CAIFLOW_HOME=str(home))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "caiflow: out: nothing can be asked of it, it is failed; begin it again with `caiflow run`",
    )


TRAINING = """\
caiflow: 1
name: trained
models: {base: {source: tiny}}
steps:
  pairs: {op: load, source: "tiny:helpful_preferences.jsonl"}
  score: {op: reward, input: pairs, model: base, max_steps: 100, learning_rate: 1e-4}
  model:
    {op: rl, input: pairs, model: base, rewards: {score: 1}, algorithm: grpo, num_generations: 2,
     per_device_train_batch_size: 2, max_completion_length: 4, max_length: 96, max_steps: 60, resources: {workers: 2}}
"""


@pytest.mark.soak
@pytest.mark.kill
def test_trainings_rest_and_one_of_several_processes_that_is_killed_then_goes_on_from_there(tmp_path: Path) -> None:
    spec, home, out = tmp_path / "spec.yaml", tmp_path / "home", tmp_path / "out"
    spec.write_text(TRAINING)

    def steps(of: str = "model") -> list[int]:
        told = (out / "events.jsonl").read_text() if (out / "events.jsonl").exists() else ""
        events = [json.loads(line) for line in told.split("\n")[:-1]]  # the last one may be half written
        told = [event for event in events if event["event"] == "step_progress" and event["step"] == of]
        return [event["done"] for event in told if event.get("done")]

    def checkpoints() -> list[int]:
        return [int(path.parent.name.rpartition("-")[2]) for path in home.rglob(f"checkpoint-*/{COMPLETE}")]

    def rested(step: str, last: int) -> int:
        """Have a training rest once it has begun; return the step behind which it does."""
        until(lambda: steps(step), run)
        write_controls(out, Controls(paused=True))
        until(checkpoints, run)
        (kept,) = checkpoints()
        time.sleep(2.0)
        assert (run.poll(), checkpoints()) == (None, [kept])
        assert max(steps(step)) <= kept < last
        return kept

    run = start(spec, out, home)
    rested("score", 100)
    write_controls(out, Controls())
    kept = rested("model", 60)
    run.kill()
    run.wait()
    assert start(spec, out, home).wait(timeout=120) == 0, (out / "console.txt").read_text()
    assert min(steps()) > kept


def test_a_host_at_rest_lets_nothing_in_and_a_limit_holds() -> None:
    engine = ScriptedEngine()
    host = EngineHost(lambda: engine)
    try:
        session = host.begin("a")
        host.control({"paused": True})
        host.submit("a", session, [(n, Request(f"q{n}")) for n in range(5)])
        assert host.collect("a", session, 0.3) == []
        assert (engine.asked, host.waiting) == ([], "`caiflow ctl RUN resume`")
        host.control({"paused": False, "concurrency": 2})
        found: list[int] = []
        end = time.monotonic() + 60
        while len(found) < 5 and time.monotonic() < end:
            found += [number for number, _ in host.collect("a", session, 0.2)]
        assert (sorted(found), host.capacity, host.waiting) == ([0, 1, 2, 3, 4], 2, "")
        assert engine.steps >= 3  # two at once at the most
    finally:
        host.close()


def test_a_pace_at_rest_lets_none_leave_and_takes_another_limit() -> None:
    async def go() -> list[int]:
        pace, seen = Pace(8), []
        pace.control(paused=True, most=3)
        waiting = [asyncio.ensure_future(pace.enter()) for _ in range(5)]
        await asyncio.sleep(0)
        seen.append(pace.under_way)
        pace.control(paused=False, most=3)
        await asyncio.sleep(0)
        seen.append(pace.under_way)
        for task in waiting:
            task.cancel()
        return seen

    assert asyncio.run(go()) == [0, 3]


def test_a_lower_cap_holds_from_then_on() -> None:
    async def go() -> None:
        budget = Budget(Account(), Most(calls=10))
        for _ in range(3):
            budget.settle(await budget.hold(1, 1), budget.of(1, 1))
        budget.control(Most(calls=3))
        with pytest.raises(EngineError, match="3 of 3 calls are used"):
            await budget.hold(1, 1)
        budget.control(Most(calls=4))
        await budget.hold(1, 1)

    asyncio.run(go())


def living(run_dir: Path) -> Path:
    """Leave a run whose driver is this process."""
    run_dir.mkdir()
    (run_dir / "spec.yaml").write_text("models: {base: {source: tiny}, judge: {source: tiny}}\n")
    record = {"status": "running", "heartbeat": time.time(), "pid": os.getpid(), "host": socket.gethostname(), "steps": {}}
    (run_dir / "run.json").write_text(json.dumps({**record, "name": "lives", "control": {"paused": False, "models": {}}}))
    return run_dir


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["concurrency"], "what is meant by 'concurrency' with these?"),
        (["pause", "3"], "what is meant by 'pause' with these?"),
        (["budget", "--max-calls", "3", "--model", "jugde"], "'jugde' is none of the models; did you mean `judge`?"),
        (["concurrency", "3", "--max-calls", "3"], "what is meant by 'concurrency' with these?"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from caiflow.engine.cli import main

    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    run_dir = living(tmp_path / "run")
    assert main(["ctl", str(run_dir), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (run_dir / CONTROL).exists()


@pytest.mark.parametrize("amount", ["nan", "inf", "-3", "0", "much"])
def test_a_cap_that_is_no_amount_reaches_no_engine(amount: str, tmp_path: Path) -> None:
    run_dir = living(tmp_path / "run")
    done = command_here(tmp_path, "ctl", str(run_dir), "budget", f"--max-cost={amount}", CAIFLOW_HOME=str(tmp_path / "home"))
    assert (done.returncode, f"{amount!r} is no amount of money above 0" in done.stderr) == (2, True)
    assert not (run_dir / CONTROL).exists()


def test_what_is_asked_is_read_as_it_was_written(tmp_path: Path) -> None:
    asked = Controls(True, {"judge": {"concurrency": 3.0, "max_cost": 1.5}})
    write_controls(tmp_path, asked)
    assert read_controls(tmp_path) == asked
    assert asked.told() == "paused by ctl; judge: concurrency 3; judge: max_cost 1.5"
    for broken in ("", "[]", '{"paused": 1}', '{"paused": true, "models": {"m": {"max_calls": "many"}}}'):
        (tmp_path / CONTROL).write_text(broken)
        assert read_controls(tmp_path) == Controls()
