"""What this machine gives to this process."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the CPU cores this process may use: fewer than the machine has where its affinity says so."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
