"""`caiflow view`: the report over real HTTP on loopback, which follows a run and answers no other name."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caiflow.engine.commands.view import server
from caiflow.engine.errors import CaiflowError
from support.made_runs import made_run, plain_rows


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    return made_run(tmp_path / "home", tmp_path / "run", plain_rows(8))


@pytest.fixture
def port(run_dir: Path) -> Iterator[int]:
    with server(run_dir) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield serving.server_port
        serving.shutdown()
        thread.join(timeout=5)


def asked(port: int, path: str = "/", host: str = "") -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()


def test_a_port_that_is_taken_is_told_in_one_line(run_dir: Path, port: int) -> None:
    with pytest.raises(CaiflowError, match=f"view: port {port}: Address already in use; leave --port out for a free one"):
        server(run_dir, port)


def test_the_page_is_the_report_and_is_made_anew_as_the_run_goes_on(run_dir: Path, port: int) -> None:
    status, headers, done = asked(port)
    assert status == 200
    assert "refresh" not in headers
    assert "default-src 'none'" in done
    run = json.loads((run_dir / "run.json").read_text())
    alive = {"status": "running", "pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()}
    (run_dir / "run.json").write_text(json.dumps({**run, **alive, "name": "still <going>"}))
    status, headers, running = asked(port, "/?again")
    assert (status, headers["refresh"]) == (200, "3")
    assert "still &lt;going&gt;" in running
    assert running != done


@pytest.mark.parametrize(
    ("path", "host"), [("/", "evil.example"), ("/", "evil.example:80"), ("/../run.json", ""), ("/steps", "")]
)
def test_no_other_name_and_no_other_path_is_answered(port: int, path: str, host: str) -> None:
    assert asked(port, path, host)[0] == 404


def test_it_listens_on_this_machine_alone(run_dir: Path) -> None:
    with server(run_dir) as serving:
        assert serving.server_address[0] == "127.0.0.1"
