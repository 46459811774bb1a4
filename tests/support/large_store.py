"""A store with many artifacts and runs, of which most can go."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from caiflow.engine.store.artifacts import Store


def fill(home: Path, artifacts: int, runs: int) -> Store:
    """Fill a store, of a day ago: every run reaches ten artifacts, and nine in ten runs are gone."""
    store = Store(home)
    names = [f"{number:064x}"[::-1] for number in range(artifacts)]
    day_ago = time.time() - 86400
    for name in names:
        path = store.path(name)
        path.mkdir(parents=True)
        (path / "rows.parquet").write_bytes(b"x" * 100)
        os.utime(path / "rows.parquet", (day_ago, day_ago))
        os.utime(path, (day_ago, day_ago))
    store.runs_dir.mkdir(parents=True, exist_ok=True)
    for number in range(runs):
        run_dir = home.with_name("kept") / f"run{number}"
        if number % 10 == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
        reached = names[10 * number : 10 * number + 10]
        record = {"name": "n", "run_dir": str(run_dir), "recorded": 1.0, "artifacts": reached, "ledgers": []}
        (store.runs_dir / f"{number}.json").write_text(json.dumps(record))
    os.utime(store.runs_dir, (day_ago, day_ago))
    return store
