"""Makes a trial in a process of its own, and turns whatever becomes of that process into diagnoses.

Owns the process, its time limit, its log and the lines it reports. A crash, a hang or an exit gives a diagnosis like any other;
what was started is gone afterwards. Knows no trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TextIO

from caiflow.engine.commands.diagnosis import Diagnosis
from caiflow.engine.commands.trials.table import Trial
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import CaiflowError

DETAIL_CHARS = 400
_SAYS = re.compile(r"(error|exception|killed|abort|fault|fatal)", re.IGNORECASE)
_MUTE = {"TOKENIZERS_PARALLELISM": "false", "KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_TELEMETRY": "1"}


class SkippedError(Exception):
    """A part can't be tried here, which is no fault; the text says why."""


class Check(NamedTuple):
    """One part of a trial: `run` returns what was seen, or raises what is wrong."""

    what: str
    run: Callable[[], str]


def make(trial: Trial, folder: Path) -> Iterator[Diagnosis]:
    """Make a trial in a process of its own and yield a diagnosis for each of its parts as it comes.

    `folder` is the trial's own; the process's output stays there in `log`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = list(trial.parts)
    ended = ""
    with (folder / "log").open("w", encoding="utf-8") as log, _started(trial, folder, log) as (process, lines):
        expired = threading.Event()
        timer = threading.Timer(trial.limit_s, _expire, (process, expired))
        timer.start()
        try:
            for line in lines:
                diagnosis = Diagnosis(**json.loads(line))
                waiting.remove(diagnosis.what)
                yield diagnosis
                if not waiting:
                    return  # however it ends, it has said all
            process.wait()
        finally:
            timer.cancel()
        ended = f"took longer than {trial.limit_s:g} s" if expired.is_set() else _ending(process.returncode)
    yield from _unreported(waiting, ended, folder / "log")


def serve(body: str, folder: Path, out: TextIO) -> None:
    """Carry out a trial in this process, the one that `make` started, and write a line to `out` for each part."""
    module, _, name = body.partition(":")
    checks: Iterator[Check] = getattr(import_module(module), name)(folder)
    for check in checks:
        out.write(json.dumps(asdict(_judged(check, folder / "log"))) + "\n")
        out.flush()


def _judged(check: Check, log: Path) -> Diagnosis:
    began = time.monotonic()
    try:
        seen = check.run()
    except SkippedError as reason:
        return Diagnosis(check.what, "skipped", str(reason))
    except Exception as error:
        say(traceback.format_exc(), end="", file=sys.stderr)
        name = "" if isinstance(error, CaiflowError | AssertionError) else f"{type(error).__name__}: "
        return Diagnosis(check.what, "broken", f"{name}{_short(str(error))}", f"the whole output is in {log}")
    return Diagnosis(check.what, "ok", f"{seen} ({time.monotonic() - began:.1f} s)")


@contextlib.contextmanager
def _started(trial: Trial, folder: Path, log: TextIO) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[str]]]:
    """Start the trial's process, the head of a session of its own; whatever is left of the session is killed at the end."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", __package__, trial.body, str(writing), str(folder)]
    environment = {**_MUTE, **os.environ}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writing,), start_new_session=True
    )
    os.close(writing)
    threading.Thread(target=_end_with, args=(process,), daemon=True).start()
    try:
        with os.fdopen(reading, encoding="utf-8") as lines:
            yield process, lines
    finally:
        _end(process)
        process.wait()


def _end_with(process: subprocess.Popen[bytes]) -> None:
    """End what a process leaves behind as soon as it has ended itself: until then its lines have no end."""
    process.wait()
    _end(process)


def _expire(process: subprocess.Popen[bytes], expired: threading.Event) -> None:
    expired.set()
    _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _ending(code: int) -> str:
    """Return what an exit code tells; empty where the process ended as it should."""
    if code == 0:
        return ""
    if code > 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"its process was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _unreported(parts: list[str], ended: str, log: Path) -> Iterator[Diagnosis]:
    """Yield the diagnoses of parts that the process never came to: the first bears the blame."""
    for place, part in enumerate(parts):
        if place:
            yield Diagnosis(part, "skipped", f"{parts[0]} is broken")
        else:
            said = _last_words(log)
            cause = (ended or "its process never came to it") + (f": {said}" if said else "")
            yield Diagnosis(part, "broken", cause, f"the whole output is in {log}")


def _last_words(log: Path) -> str:
    """Return the last line of the output that speaks of an error, or else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if _SAYS.search(line)]
    return _short((telling or lines or [""])[-1])


def _short(text: str) -> str:
    line = " ".join(text.split()) or "no text"
    return line if len(line) <= DETAIL_CHARS else f"{line[:DETAIL_CHARS]}..."
