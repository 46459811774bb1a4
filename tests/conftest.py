"""Test processes share the cores: each takes its part of the threads, and none spins while it waits."""

from __future__ import annotations

import os

_SHARE = os.cpu_count() or 1
if hasattr(os, "sched_getaffinity"):
    _SHARE = len(os.sched_getaffinity(0))
_SHARE //= int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _SHARE)))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
