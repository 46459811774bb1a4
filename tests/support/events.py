"""The events of a run, as it wrote them down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from caiflow.engine.store.journal import Event


def read_events(run_dir: Path) -> Iterator[Event]:
    """Yield the events of a run in order; a last line cut by a crash is left out."""
    path = run_dir / "events.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return
