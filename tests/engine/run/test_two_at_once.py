"""Two whole runs of one spec at once, each with its own Ray, at one server that counts: what both want is paid for once.

So is what a run asks again whose worker has died.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.identity import digest
from support.bad_server import BadServer, Reply, bad_server, said
from support.kills import leftovers, rows_by_step, start, victims

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(900)]
ROWS, AT_ONCE = 200, 4
CALLS = 3 * ROWS
SPEC = """\
caiflow: 1
name: both
constitution: harmless
models: {m: {source: served, base_url: "URL", concurrency: AT_ONCE}}
steps:
  rows:     {op: load, source: rows.jsonl}
  answer:   {op: generate, input: rows, model: m}
  critique: {op: critique, input: answer, model: m}
  revision: {op: revise, input: critique, model: m}
"""


@pytest.fixture
def server() -> Iterator[BadServer]:
    """A server that answers the first calls only once more are under way than one run may have: then both are there."""
    both = threading.Event()

    def reply(body: dict[str, Any], number: int) -> Reply:
        if served.at_once > AT_ONCE:
            both.set()
        both.wait(0.02 if number > CALLS // 3 else 60)
        time.sleep(0.02)
        return said(f"Answer {digest(body)[:12]} to what was asked.")

    with bad_server() as served:
        served.reply = reply
        yield served


def write_spec(folder: Path, url: str, at_once: int = AT_ONCE) -> Path:
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(ROWS)))
    spec = folder / "both.yaml"
    spec.write_text(SPEC.replace("URL", url).replace("AT_ONCE", str(at_once)))
    return spec


def asked_twice(server: BadServer) -> int:
    counted = Counter(json.dumps(body, sort_keys=True) for body in server.calls)
    return counted.total() - len(counted)


@pytest.mark.parametrize("killed", [False, True])
def test_two_runs_at_once_pay_for_each_call_once(
    tmp_path: Path, server: BadServer, killed: bool, figure: Callable[[str, str], None]
) -> None:
    spec = write_spec(tmp_path / "spec", server.url)
    runs = [
        start(spec, tmp_path / name, tmp_path / "home", "--allow-host", server.url.split("/")[2]) for name in ("one", "two")
    ]
    if killed:
        while len(server.calls) < CALLS // 2:
            time.sleep(0.1)
            assert runs[0].poll() is None
        runs[1].send_signal(signal.SIGKILL)
    codes = [run.wait(timeout=400) for run in runs]
    assert codes == [0, -signal.SIGKILL if killed else 0], (tmp_path / "one" / "console.txt").read_text()
    assert server.most_at_once > AT_ONCE
    told = f"{asked_twice(server)} of {CALLS} calls made twice"
    figure("equal runs", f"{told} where the second run was killed" if killed else told)
    # What a killed run had asked for is lost, and what its engine began before it knew that its driver was gone.
    assert asked_twice(server) <= (2 * AT_ONCE if killed else 0)
    assert len(server.calls) <= 1.05 * CALLS
    one = rows_by_step(tmp_path / "one")
    assert len(one["revision"]) == ROWS
    assert killed or one == rows_by_step(tmp_path / "two")
    until = time.monotonic() + 60  # what a killed driver leaves is reaped
    assert not any(leftovers(run.pid, until - time.monotonic()) for run in runs)


def test_what_a_dead_worker_had_asked_is_not_paid_for_again(tmp_path: Path, figure: Callable[[str, str], None]) -> None:
    def reply(body: dict[str, Any], _number: int) -> Reply:
        time.sleep(0.3)
        return said(f"Answer {digest(body)[:12]} to what was asked.")

    with bad_server() as server:
        server.reply = reply
        spec = write_spec(tmp_path / "spec", server.url, at_once=64)
        run = start(spec, tmp_path / "run", tmp_path / "home", "--allow-host", server.url.split("/")[2])
        while len(server.calls) < CALLS // 2:
            time.sleep(0.02)
            assert run.poll() is None
        killed = [worker for worker in victims(run, "worker") if worker.kill() is None]
        assert killed
        assert run.wait(timeout=200) == 0, (tmp_path / "run" / "console.txt").read_text()
    figure("lost worker", f"{asked_twice(server)} of {CALLS} calls made twice, {server.most_at_once} at once")
    assert server.most_at_once > 20
    assert asked_twice(server) == 0
    assert len(rows_by_step(tmp_path / "run")["revision"]) == ROWS
