"""Trials that end badly, each in its own way; carried out in processes of their own, as the real ones are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from caiflow.engine.commands.trials.bench import Check, SkippedError


def _fine() -> str:
    return "as it should be"


def mixed(folder: Path) -> Iterator[Check]:
    """One part goes well, one can't be tried, one is wrong, and the next goes well again."""
    yield Check("fine", _fine)
    yield Check("absent", lambda: _skip("there is none here"))
    yield Check("wrong", lambda: str(1 / 0))
    yield Check("fine again", _fine)


def _skip(reason: str) -> str:
    raise SkippedError(reason)


def crashing(folder: Path) -> Iterator[Check]:
    """Die by a signal within the second part."""
    yield Check("fine", _fine)
    print("CUDA error: an illegal memory access was encountered", flush=True)
    yield Check("crash", lambda: str(os.kill(os.getpid(), signal.SIGSEGV)))


def leaving(folder: Path) -> Iterator[Check]:
    """Leave a child behind and exit before the first part."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
    (folder / "child").write_text(str(child))
    raise RuntimeError("no such device")
    yield Check("never", _fine)


def hanging(folder: Path) -> Iterator[Check]:
    """Never come to an end."""
    yield Check("hang", lambda: str(time.sleep(600)))
