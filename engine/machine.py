"""What this machine gives to this process: cores, and the folders of its users."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Return the CPU cores this process may use: fewer than the machine has where its affinity says so."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def home() -> Path:
    """Return the user's home folder; where the user has none, a folder that isn't there."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def local_path(text: str, base_dir: Path) -> Path:
    """Return the path that a text means in the folder `base_dir`: `~` is a home folder, where that user has one."""
    try:
        return base_dir / Path(text).expanduser()
    except RuntimeError:  # there is nobody of that name
        return base_dir / text
