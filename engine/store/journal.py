"""The journal of a run: events.jsonl, run.json with its heartbeat, and reading the latter back.

Everything that happens in a run is one event, a flat dict with `t` (unix seconds) and `event`. The journal appends it to
events.jsonl, folds it into run.json, and hands it to one listener (a display). It never renders and never starts work.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from caiflow.engine.errors import StoreError
from caiflow.engine.store.disk import finite
from caiflow.engine.version import VERSION

Event = dict[str, Any]
Listener = Callable[[Event], None]
RunStatus = Literal["running", "done", "failed", "interrupted"]
StepStatus = Literal["waiting", "running", "done", "cached", "failed", "skipped"]
MADE: tuple[StepStatus, ...] = ("done", "cached")
"""Of a step that has made what it is to make, now or before."""

HEARTBEAT_S = 2.0
"""How often a running driver rewrites run.json."""
DEAD_AFTER_S = 15.0
"""A heartbeat older than this means that the driver died."""

STEP_FIELDS = (
    "op", "digest", "status", "rows_in", "rows_out", "cached", "dropped", "failed", "calls", "reused_calls", "prompt_tokens",
    "completion_tokens", "seconds", "gpu_hours", "peak_memory_bytes", "peak_gpu_memory_bytes", "metrics", "error",
)  # fmt: skip
"""What run.json keeps of a step's events."""


class Journal:
    """Write down a run as it happens; use as a context manager.

    Safe to call from several threads. Leaving the block without a `run_done` event closes the run as interrupted (Ctrl-C,
    SIGTERM turned into KeyboardInterrupt) or failed (any other exception).
    """

    def __init__(self, run_dir: Path, on_event: Listener | None = None) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self._on_event = on_event
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._events: TextIO = (run_dir / "events.jsonl").open("w", encoding="utf-8")
        now = round(time.time(), 3)
        self._run: dict[str, Any] = {
            "caiflow": VERSION, "status": "running", "name": run_dir.name, "started": now, "finished": None, "seconds": None,
            "heartbeat": now, "pid": os.getpid(), "host": socket.gethostname(), "steps": {}, "notes": [],
        }  # fmt: skip
        self._write_run()
        self._thread = threading.Thread(target=self._beat, name="caiflow-heartbeat", daemon=True)

    def __enter__(self) -> Journal:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._run["status"] == "running":
            stopped = kind is None or issubclass(kind, KeyboardInterrupt)
            self.emit("run_done", status="interrupted" if stopped else "failed", error=str(error) if error else None)
        self._stop.set()
        self._thread.join()
        self._events.close()

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event; `None` values are left out."""
        line: Event = {"t": round(time.time(), 3), "event": event}
        line.update({name: finite(value) for name, value in fields.items() if value is not None})
        with self._lock:
            self._events.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            self._events.flush()
            if fold(self._run, line):
                self._write_run()
            if self._on_event is not None:
                self._on_event(line)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with self._lock, suppress(OSError):  # a disk that is full or away for a moment: the next beat may be written
                self._run["heartbeat"] = round(time.time(), 3)
                self._write_run()

    def _write_run(self) -> None:
        path = self.run_dir / "run.json"
        fresh = path.with_name(f".run.json.{os.getpid()}")
        fresh.write_text(json.dumps(self._run, ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(fresh, path)


def fold(run: dict[str, Any], event: Mapping[str, Any]) -> bool:
    """Apply one event to the content of run.json; return whether it is worth writing at once."""
    kind = event["event"]
    if kind == "run_started":
        run.update({k: v for k, v in event.items() if k not in ("t", "event", "steps")})
        run["steps"] = {step["name"]: _new_step(step) for step in event["steps"]}
    elif kind == "run_done":
        run.update(status=event["status"], finished=event["t"], heartbeat=event["t"])
        run["seconds"] = event.get("seconds", round(event["t"] - run["started"], 3))
        if "error" in event:
            run["error"] = event["error"]
    elif kind == "control":
        run["control"] = {name: event[name] for name in ("paused", "models")}
    elif "step" in event and event["step"] in run["steps"]:
        step = run["steps"][event["step"]]
        step.update({name: event[name] for name in STEP_FIELDS if name in event})
        if kind == "step_started":
            step["status"] = "running"
        elif kind == "step_done":
            run["notes"] = [*run.get("notes", ()), *event.get("notes", ())]
    return kind in ("run_started", "run_done", "step_started", "step_done", "control")


def _new_step(step: Mapping[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "digest": None,
        "status": "waiting",
        "rows_in": None,
        "rows_out": None,
        "seconds": None,
        "metrics": {},
    }
    return {"op": step["op"], **empty, **{k: v for k, v in step.items() if k in ("inputs", "digest")}}


_NEEDED = {"status", "steps"}
"""By which a record of a run is told from any other run.json."""


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return the content of run.json, its status corrected where the driver died.

    Raises:
        FileNotFoundError: the folder holds no run.json.
        StoreError: it holds another thing under that name, or what a broken disk left of one.
    """
    path = run_dir / "run.json"
    try:
        run = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or not run.keys() >= _NEEDED or not isinstance(run["steps"], dict):
        raise StoreError(f"{path}: no record of a run, or a damaged one", "run the spec again: what was made is kept")
    run["status"] = true_status(run)
    if run["status"] != "running":
        for step in run["steps"].values():
            if step["status"] in ("running", "waiting"):
                step["status"] = "interrupted" if step["status"] == "running" else "not run"
    return run


def true_status(run: Mapping[str, Any], now: float | None = None) -> RunStatus:
    """Return the status of a run: `running` only while its driver lives."""
    status: RunStatus = run["status"]
    if status != "running":
        return status
    late = (time.time() if now is None else now) - run["heartbeat"] > DEAD_AFTER_S
    gone = run["host"] == socket.gethostname() and not _alive(run["pid"])
    return "interrupted" if late or gone else "running"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
