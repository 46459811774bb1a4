"""Runs of a small spec in processes of their own, which may be killed, or be two at once.

Each is forked from a process that has imported everything and done nothing, so that it begins in milliseconds:
`python -m support.forked_runs SOCKET` is that process; it ends with its standard input.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from support.runs_without_ray import AskedLink, carry_out, write_spec

IN_FLIGHT = 2
"""Most calls that a run has under way: twice what its link takes at once."""
_HANGS_S = 120.0


@dataclass
class ToldLink(AskedLink):
    """Tells of each answer through a pipe before it is given."""

    told: Connection | None = None
    capacity: int = IN_FLIGHT // 2

    async def submit(self, requests: Any, over: Any = ()) -> None:
        """Answer at once, and say so."""
        had = len(self.answered)
        await super().submit(requests, over)
        assert self.told is not None
        for _ in self.answered[had:]:
            self.told.send("answered")


class ForkedRun:
    """A run in a process of its own; `answered` counts what its model answered, as far as it was heard."""

    def __init__(self, spec: Path, home: Path) -> None:
        self.answered = 0
        self._rows: list[dict[str, Any]] | None = None
        line = socket.socket(socket.AF_UNIX)
        line.connect(_forking())
        self._line = Connection(line.detach())
        self._line.send((spec, home))
        self._process = int(self._line.recv())

    def kill(self, answers: int, later_s: float) -> None:
        """Kill it once so many answers were given and a moment has passed, or it has ended."""
        while self.answered < answers and self._hear():
            pass
        time.sleep(later_s)
        with suppress(ProcessLookupError):  # it has ended in this moment, its last words still unheard
            if not self._line.closed:
                os.kill(self._process, signal.SIGKILL)

    def end(self) -> list[dict[str, Any]] | None:
        """Wait for its end; return its rows, None where it was killed before it had them."""
        while self._hear():
            pass
        return self._rows

    def _hear(self) -> bool:
        if self._line.closed:
            return False
        assert self._line.poll(_HANGS_S), "it hangs"
        try:
            told = self._line.recv()
        except (EOFError, ConnectionResetError):
            self._line.close()
            return False
        if isinstance(told, BaseException):
            raise told
        if isinstance(told, list):
            self._rows = told
        else:
            self.answered += 1
        return True


@cache
def _forking() -> str:
    """Return the socket of the process that forks, begun with the first run."""
    address = str(Path(tempfile.mkdtemp(prefix="caiflow-forks-")) / "socket")
    command = [sys.executable, "-m", "support.forked_runs", address]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return address


def _import_all(folder: Path) -> None:
    """Import what the runs import, without a thread: those don't come along with a fork."""
    import pandas  # noqa: F401
    import polars  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import caiflow.engine.flow.stream
    import caiflow.operators.filtering.sieve  # noqa: F401
    from caiflow.engine.plan.plan import make_plan

    make_plan(load_spec(write_spec(folder / "spec", ["Say it."], ["Is it kind?"])), Store(folder / "home"))
    shutil.rmtree(folder / "spec")
    shutil.rmtree(folder / "home", ignore_errors=True)


def _fork_for_each(address: str) -> None:
    _import_all(Path(address).parent)
    assert threading.active_count() == 1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    while listening in select.select([listening, sys.stdin], [], [])[0]:
        caller, _ = listening.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _live(Connection(caller.detach()))
            os._exit(0)
        caller.close()
    Path(address).unlink()
    Path(address).parent.rmdir()


def _live(line: Connection) -> None:
    try:
        spec, home = line.recv()
        line.send(os.getpid())
        rows, _ = carry_out(spec, Store(home), ToldLink(told=line))
        line.send(rows)
    except Exception as error:
        line.send(error)


if __name__ == "__main__":
    _fork_for_each(sys.argv[1])
