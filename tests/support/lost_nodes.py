"""One whole run on a Ray of three nodes, one of which is lost in each phase; a process of its own, which has Ray's token.

    python -m support.lost_nodes FOLDER

FOLDER has phases.yaml; its runs are put there, `whole` and `disturbed`. Prints, by step, when it was hit and what came of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from support.raylets import HERE, head

PHASES = {
    "response": signal.SIGKILL,
    "sl_cai": signal.SIGSTOP,
    "preference": signal.SIGSTOP,
    "reward_model": signal.SIGKILL,
    "rl_cai": signal.SIGSTOP,
    "scores": signal.SIGKILL,
}
"""In each of these steps the node that computes most is killed, or stopped."""
_STEP_S, _RUN_S = 120, 300


class Nodes:
    """A head without GPUs, and two nodes that have four each in name."""

    def __init__(self) -> None:
        self._nodes = head(num_cpus=2)
        self.address: str = self._nodes.address
        self._lost: list[Any] = []
        self.come()
        self.come()

    def come(self) -> None:
        """Add a node."""
        self._nodes.add_node(**HERE, num_cpus=1, num_gpus=4, wait=False)

    def lose(self, how: signal.Signals) -> int:
        """Kill or stop the node that computes most, with all of its processes; return how many of them did the run's work."""
        left = [node for node in self._nodes.worker_nodes if node not in self._lost]
        node = max(left, key=lambda node: sum(map(_works, processes_of(node))))
        self._lost.append(node)
        working = sum(map(_works, processes_of(node)))
        signalled(node, how)
        return working

    def shutdown(self) -> None:
        """End all nodes, stopped ones too."""
        for node in list(self._nodes.worker_nodes):
            signalled(node, signal.SIGKILL)
        self._nodes.shutdown()


def processes_of(node: Any) -> list[psutil.Process]:
    """Return a node's raylet and what it has started; nothing where it is dead."""
    try:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _works(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "ray::Worker" in title or "ray::EngineActor" in title


def signalled(node: Any, how: signal.Signals) -> None:
    """Send a signal to all processes of a node."""
    for process in processes_of(node):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)


def _begin(folder: Path, name: str, address: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "caiflow.engine.cli", "run", "phases.yaml", "--out", name, "--address", address]
    environment = {**os.environ, "CAIFLOW_HOME": str(folder / f"home of {name}")}
    with open(folder / f"{name}.txt", "wb") as console:
        return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console)


def whole_lines(file: Path) -> list[str]:
    """Return the lines of a file that others may be writing, without one that is half written."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [line.removesuffix("\n") for line in lines if line.endswith("\n")]


def _events(run: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in whole_lines(run / "events.jsonl")]


def _under_way(run: Path, step: str, driver: subprocess.Popen[bytes]) -> bool:
    """Wait until a step has made something; return whether there was more to make."""
    until = time.monotonic() + _STEP_S
    while time.monotonic() < until and driver.poll() is None:
        events = [event for event in _events(run) if event.get("step") == step]
        if any(event["event"] == "step_done" for event in events):
            return False
        if any(event.get("done", 0) > 0 for event in events):
            return True
        time.sleep(0.05)
    raise TimeoutError(f"{step} made nothing in {_STEP_S} s; the run's exit code is {driver.poll()}")


def _next_after(run: Path, step: str, moment: float) -> float:
    """Return how many seconds after it was hit a step told that it had made more; 0 where the end was all it told."""
    told = [(event["t"], event["done"]) for event in _events(run) if event.get("step") == step and "done" in event]
    made = max(done for at, done in told if at < moment + 1)  # what was on its way then is told a little later
    return next((at - moment for at, done in told if done > made), 0.0)


def main(folder: Path) -> None:
    """Run it whole, then lose a node in each phase of a second run with a store of its own."""
    nodes = Nodes()
    told: dict[str, dict[str, Any]] = {}
    drivers = []
    try:
        drivers.append(_begin(folder, "whole", nodes.address))
        codes = [drivers[0].wait(_RUN_S)]
        drivers.append(_begin(folder, "disturbed", nodes.address))
        for step, how in PHASES.items():
            more = _under_way(folder / "disturbed", step, drivers[1])
            told[step] = {"how": how.name, "under way": more, "processes": nodes.lose(how), "t": time.time()}
            nodes.come()
        codes.append(drivers[1].wait(_RUN_S))
    finally:
        for driver in drivers:
            driver.kill()
        nodes.shutdown()
    for step, found in told.items():
        found["goes on after"] = round(_next_after(folder / "disturbed", step, found.pop("t")), 1)
    print(json.dumps({"codes": codes, "phases": told}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
