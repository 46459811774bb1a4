"""How Ray is entered: quietly, locked where it is this machine's alone, and with this process's own signals.

Owns the environment that Ray and its processes read, and the start, which is tried again. Places nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from caiflow.engine.errors import ClusterError, first_line

ANSWER_S = 10.0
"""Longest wait for a cluster elsewhere to take a connection."""
START_TRIES = 3
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_METRICS_EXPORT_INTERVAL_MS": "0",
}
LOCAL = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_prestart_worker_first_driver": "0"}
"""A cluster of this machine alone: it listens on loopback, only to those who know this process's token, and starts no process
ahead: Ray would start one for every core, and workers and engines, having an environment of their own, could use none."""
WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "GOMP_SPINCOUNT": "20000",
    "KMP_BLOCKTIME": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Threads that soon wait asleep: processes that spin for long on the same cores slow each other down many times over, and
threads that sleep at once double the time of a small model's step."""

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest name of a socket below Ray's folder, as far as its length goes."""


def refuse_silence(address: str) -> None:
    """Raise where nobody listens at HOST:PORT, which Ray itself would try for minutes; other forms are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise ClusterError(f"ray: can't reach {address}: {error}; is the cluster up, and is this its GCS address?") from None


def session_folder(prefix: str) -> Path:
    """Make a folder for the files of a Ray of one's own: a temporary one, or in /tmp where the name of that is too long.

    The system takes no socket with a longer name; batch systems and macOS have long folders for temporary files.
    """
    usual = tempfile.gettempdir()
    longest = len(os.fsencode(usual)) + len(f"/{prefix}12345678{_SOCKET}")
    return Path(tempfile.mkdtemp(prefix=prefix, dir=usual if longest <= _LONGEST_SOCKET else "/tmp"))


def lock_out_others() -> None:
    """Set the environment of a cluster that only this process may use; Ray reads it once, when it is imported."""
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != LOCAL["RAY_AUTH_MODE"]:
        raise ClusterError("ray: it was imported before the run, too late to lock others out; import it after, or not at all")
    os.environ.update(LOCAL)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces when it starts."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def enter(address: str | None, temp: Path | None, report: Callable[[dict[str, Any]], None]) -> None:
    """Reach Ray at an address, or start one here with its files in `temp`.

    A local start that went wrong is tried again, since two at once may take each other's ports.

    Raises:
        ClusterError: it can't be started or reached.
    """
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "_temp_dir": str(temp), "object_store_memory": 200 * 2**20}
    else:
        options["address"] = address
    for left in reversed(range(START_TRIES if address is None else 1)):
        try:
            with own_signals(), _processes_alone() if address is None else contextlib.nullcontext():
                ray.init(**options)
            _keep_off_output()
            return
        except Exception as error:  # among others a bare one, where its node doesn't come up in time
            ray.shutdown()
            if left:
                report({"event": "log", "text": f"Ray didn't start, and is tried again: {first_line(error)}"})
                continue
            where = address or "a local cluster"
            hint = "a cluster with tokens wants RAY_AUTH_MODE=token set here, too" if address else ""
            raise ClusterError(f"ray: can't start or reach {where}: {first_line(error)}", hint) from error


@contextlib.contextmanager
def _processes_alone() -> Iterator[None]:
    """Have Ray start what runs processes, and nothing that watches them for others: four seconds of the CPU in a minute's run.

    That is its server of the dashboard, what follows logs, what scales clusters, and all but the core of its agents.
    What another release calls otherwise is started as ever.
    """
    from ray._private import utils
    from ray._private.node import Node

    unneeded = ("start_api_server", "start_log_monitor", "start_monitor")
    instead: list[tuple[Any, str, Any]] = [(Node, name, lambda *_, **__: None) for name in unneeded]
    instead.append((utils, "get_dashboard_dependency_error", lambda: ImportError("its dashboard isn't wanted")))
    found = [(where, name, getattr(where, name), other) for where, name, other in instead if hasattr(where, name)]
    try:
        for where, name, _, other in found:
            setattr(where, name, other)
        yield
    finally:
        for where, name, own, _ in found:
            setattr(where, name, own)


def _keep_off_output() -> None:
    """Have what Ray tells of its nodes go to standard error: it prints it on standard output, whatever it is told of logs."""
    from ray._private import worker

    tell = worker.print_to_stdstream
    if not isinstance(tell, functools.partial):  # else a cluster before this one did it
        worker.print_to_stdstream = functools.partial(_on_errors, tell)


def _on_errors(tell: Callable[..., None], data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Tell it on standard error, but for the warning of many processes: workers are meant to be many, and mostly wait."""
    lines = [line for line in data["lines"] if "worker processes have been started on node" not in line]
    if lines:
        tell({**data, "lines": lines, "is_err": True}, ignore_prefix)
