"""Killing a real run at random moments, and comparing what is left at the end with an undisturbed run.

Everything is real: the command, Ray, the model, `kill -9`. The seed decides the moments and the victims.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

VICTIMS = {"driver": "", "worker": "ray::Worker", "engine": "ray::EngineActor"}
_FRAME = struct.Struct("<II16s")
_STARTED: list[subprocess.Popen[bytes]] = []


@dataclass
class Harvest:
    """What a disturbed run went through."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    seconds: float = 0.0


def without_token() -> dict[str, str]:
    """Return this process's environment as users have it: a run gives its cluster a token itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}


def start(spec: Path, out: Path, home: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `caiflow run` in a session of its own, its output in a file beside the run."""
    environment = {**without_token(), "CAIFLOW_HOME": str(home)}
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "console.txt", "ab") as console:
        command = [sys.executable, "-m", "caiflow.engine.cli", "run", str(spec), "--out", str(out), *options]
        driver = subprocess.Popen(
            command, stdout=console, stderr=console, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    _STARTED.append(driver)
    return driver


def end_started() -> None:
    """Kill each run that a test left going, since it failed or took too long; what watches over the run ends its Ray."""
    while _STARTED:
        driver = _STARTED.pop()
        if driver.poll() is None:
            driver.kill()


def victims(driver: subprocess.Popen[bytes], kind: str) -> list[psutil.Process]:
    """Return the live processes of a kind that belong to this run."""
    try:
        process = psutil.Process(driver.pid)
        if kind == "driver":
            return [process]
        return [child for child in process.children(recursive=True) if VICTIMS[kind] in _title(child)]
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""


def disturb(spec: Path, out: Path, home: Path, *, kills: int, span_s: float, seed: int, budget_s: float) -> Harvest:
    """Run until done, with `kills` kills at random moments, `span_s` apart at the most; then let the run finish.

    Raises:
        TimeoutError: it wasn't done within `budget_s`.
        RuntimeError: a run that nobody killed failed.
    """
    chance = random.Random(seed)
    harvest = Harvest()
    began = time.monotonic()
    while True:
        driver = start(spec, out, home)
        harvest.runs += 1
        try:
            killed_driver = _kill_some(driver, kills, span_s, chance, harvest)
            left = budget_s - (time.monotonic() - began)
            code = driver.wait(timeout=max(1.0, left))
        except subprocess.TimeoutExpired:
            driver.kill()
            raise TimeoutError(f"{spec}: not done after {budget_s:g} s; see {out}/console.txt") from None
        if code == 0 and sum(harvest.kills.values()) >= kills:
            harvest.seconds = time.monotonic() - began
            return harvest
        if code == 0:
            raise RuntimeError(f"the run was done after {harvest.kills.total()} of {kills} kills; choose a smaller span")
        if not killed_driver:
            raise RuntimeError(f"a run that nobody killed ended with {code}; see {out}/console.txt")


def _kill_some(driver: subprocess.Popen[bytes], kills: int, span_s: float, chance: random.Random, harvest: Harvest) -> bool:
    """Kill what chance says until the driver is dead or enough were killed; tell whether the driver was killed."""
    while harvest.kills.total() < kills and driver.poll() is None:
        moment = time.monotonic() + chance.uniform(0.2, span_s)
        while time.monotonic() < moment and driver.poll() is None:
            time.sleep(0.05)
        kind = chance.choices(list(VICTIMS), weights=[2, 1, 1])[0]
        found = victims(driver, kind)
        if not found or driver.poll() is not None:
            continue
        victim = chance.choice(found)
        with_children = [victim]
        for process in with_children:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                break
        else:
            harvest.kills[kind] += 1
        if kind == "driver":
            driver.wait(timeout=30)
            return True
    return False


def ledger_records(home: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (namespace, key) of every whole record of what was paid for, repeated ones included.

    Ids of sampled tokens are kept by their words, again with each row that says the same.
    """
    for path in sorted((home / "ledger").rglob("*")):
        if not path.is_file() or path.suffix == ".new" or path.parent.name.startswith("sampled-"):
            continue
        data = path.read_bytes()
        place = 8
        while place + _FRAME.size <= len(data):
            length, _, key = _FRAME.unpack_from(data, place)
            place += _FRAME.size + length
            if place <= len(data):
                yield path.parent.name, key


def rows_by_step(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every step of a run that has rows."""
    from caiflow.engine.rows.folder import Rows

    steps = {path.name: Rows(path) for path in sorted((run_dir / "steps").iterdir())}
    return {name: rows.pylist() for name, rows in steps.items() if rows.files}


def leftovers(driver_pid: int, within_s: float = 30.0) -> list[str]:
    """Return the Ray processes that outlive a driver's session for so long: its reaper ends one that was just being started."""
    until = time.monotonic() + within_s
    while (found := _naming(driver_pid)) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def _naming(driver_pid: int) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if ("ray::" in title or "raylet" in title or "gcs_server" in title) and f"caiflow-ray-{driver_pid}-" in title:
            found.append(title[:120])
    return found
