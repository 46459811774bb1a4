"""A hub on loopback that serves the repositories which the recipes name, laid out as they are published, with tiny weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.kills import without_token
from support.ports import free_port

ROOT = Path(__file__).parents[2]
HUB = Path(os.environ.get("CAIFLOW_TEST_HUB") or ROOT.parent / "shared" / "hub")
"""Where the server and the layouts are that stand in for the real hub; tests skip where there are none."""
SERVED_S = 7200
GONE = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@contextmanager
def loopback_hub(root: Path) -> Iterator[dict[str, str]]:
    """Serve until the block ends; yield the variables under which all is found. `requests.log` in ROOT has what was asked."""
    weights = ROOT / "examples" / "tiny" / "model"
    subprocess.run([sys.executable, str(HUB / "layouts.py"), str(root), str(weights)], check=True, timeout=300)
    with served(root, "datasets/Anthropic/hh-rlhf") as variables:
        yield variables


@contextmanager
def served(root: Path, first: str) -> Iterator[dict[str, str]]:
    """Serve the repositories under ROOT, `first` among them, until the block ends; yield the variables as above."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(HUB / "hub.py"), str(root), str(port), str(SERVED_S)])
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/{first}")
        variables = {"HF_ENDPOINT": address, "HF_HOME": str(root / "home"), "CAIFLOW_HOME": str(root / "store")}
        yield {**{name: value for name, value in without_token().items() if name not in GONE}, **variables}
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, f"nobody answers at {address}"
            time.sleep(0.2)
        else:
            return
