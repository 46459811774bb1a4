"""Ends what a killed driver leaves of its own Ray: a process beside the driver that outlives it by a few seconds.

Ray's processes end with their driver, but one that was being started just then waits for a server that is gone, and the
folder of the session stays. The reaper holds a pipe from the driver: once that closes, however the driver ended, it kills the
processes that name the folder and removes the folder. Never used for a cluster that caiflow only connects to.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE_S = 3.0
"""What Ray's processes get to end by themselves."""
_LIMIT_S = 30.0


def watch(folder: Path) -> subprocess.Popen[bytes]:
    """Start a reaper for a session's folder; it acts when this process ends or closes the reaper's `stdin`."""
    command = [sys.executable, "-m", __name__, str(folder)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def reap(folder: Path) -> None:
    """Wait for the processes that name a folder to end, kill those that don't, and remove the folder."""
    began = time.monotonic()
    while (left := _naming(folder)) and time.monotonic() - began < _LIMIT_S:
        if time.monotonic() - began > GRACE_S:
            _kill(left)
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def _naming(folder: Path) -> list[int]:
    """Return the processes, but for this one, whose command names the folder, and Ray's own that have a file of it open."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid == psutil.Process().pid:
            continue
        if any(str(folder) in word for word in words) or (words and words[0].startswith("ray::") and _uses(process, folder)):
            found.append(process.pid)
    return found


def _uses(process: psutil.Process, folder: Path) -> bool:
    import psutil

    try:
        return any(file.path.startswith(str(folder)) for file in process.open_files())
    except psutil.Error:
        return False


def _kill(processes: list[int]) -> None:
    import psutil

    for number in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            psutil.Process(number).kill()


if __name__ == "__main__":
    sys.stdin.buffer.read()
    reap(Path(sys.argv[1]))
