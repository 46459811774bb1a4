"""What is dear to make is made once for all processes of a test session: the first makes it, the others wait for it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest


def of_session(folders: pytest.TempPathFactory) -> Path:
    """Return the folder that all processes of a session share."""
    base = folders.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def made_once(folders: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder in which `make` has been called, in this process or in another of the session.

    Tests change nothing of it; what they add beside it has names of their own.
    """
    session = of_session(folders)
    folder, lock = session / name, session / f"{name}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder
