"""The ledger against SQLite, the usual place for such results: appending, reopening and reading all, and memory.

Both keep the same records under the same promise: a killed process loses nothing that was appended, a power cut at most a
second. SQLite commits each second, which promises less (a kill loses the second), so it is favoured. Prints a JSON list.

    python -m tests.benchmarks.ledger [--records N] [--runs N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.store.ledger import Ledger

RECORDS = 182_831 * 9
"""Rows of the largest published constitutional data set x calls a row."""


def keys(count: int) -> Iterator[bytes]:
    """Yield the keys of the records."""
    return (hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest() for number in range(count))


def payload(number: int) -> dict[str, Any]:
    """Return one result of about 500 bytes as JSON."""
    words = f"As for question {number}, I'd rather help in a way that harms nobody. "
    return {"out": {"response": words * 6, "principle": f"p{number % 16:02d}"}, "tokens": [number % 700, 96]}


def append_ours(folder: Path, count: int) -> None:
    """Append all records to a ledger."""
    with Ledger(folder, "bench") as ledger:
        for number, key in enumerate(keys(count)):
            ledger.append(key, payload(number))


def append_theirs(folder: Path, count: int) -> None:
    """Insert all records into SQLite, with a commit each second."""
    database = _open(folder)
    committed = time.monotonic()
    for number, key in enumerate(keys(count)):
        database.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (key, json.dumps(payload(number))))
        if time.monotonic() - committed > 1:
            database.commit()
            committed = time.monotonic()
    database.commit()
    database.close()


def read_ours(folder: Path, count: int) -> None:
    """Open the ledger and read every record."""
    with Ledger(folder, "bench") as ledger:
        assert all(ledger.get(key) is not None for key in keys(count))


def read_theirs(folder: Path, count: int) -> None:
    """Open SQLite and read every record."""
    database = _open(folder)
    query = "SELECT payload FROM results WHERE key = ?"
    assert all(json.loads(database.execute(query, (key,)).fetchone()[0]) for key in keys(count))
    database.close()


def open_ours(folder: Path, count: int) -> None:
    """Open the ledger and find one key."""
    with Ledger(folder, "bench") as ledger:
        assert next(keys(count)) in ledger


def scan_theirs(folder: Path, count: int) -> None:
    """Read all of SQLite's keys, which is what holding an index costs there."""
    database = _open(folder)
    assert sum(1 for _ in database.execute("SELECT key FROM results")) == count
    database.close()


def _open(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / "results.sqlite")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, payload TEXT) WITHOUT ROWID")
    return database


def held_by_ledger(folder: Path, count: int) -> float:
    """Return the memory in MB that an open ledger takes."""
    import numpy as np

    np.zeros(1)
    before = _resident_mb()
    with Ledger(folder, "bench") as ledger:
        assert len(ledger) == count
        return _resident_mb() - before


def held_by_dict(folder: Path, count: int) -> float:
    """Return the memory in MB that the keys and offsets take in a dict."""
    before = _resident_mb()
    index = {key: number * 500 for number, key in enumerate(keys(count))}
    assert len(index) == count
    return _resident_mb() - before


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def _timed(work: Callable[[Path, int], None], folder: Path, count: int) -> float:
    begun = time.perf_counter()
    work(folder, count)
    return time.perf_counter() - begun


def _apart(work: Callable[[Path, int], float], folder: Path, count: int) -> float:
    """Return what `work` says in a fresh process, whose memory nothing else has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (folder, count))


def measure(records: int, runs: int) -> list[dict[str, Any]]:
    """Return the comparisons; ours and theirs take turns."""
    pairs = {
        f"ledger: append {records:,} results of 500 bytes (SQLite)": (append_ours, append_theirs),
        f"ledger: open and read {records:,} results (SQLite)": (read_ours, read_theirs),
        f"ledger: open with {records:,} results (SQLite, all keys)": (open_ours, scan_theirs),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    held = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            for name, (ours, theirs) in pairs.items():
                seconds[name].append((_timed(ours, Path(folder), records), _timed(theirs, Path(folder), records)))
            held.append((_apart(held_by_ledger, Path(folder), records), _apart(held_by_dict, Path(folder), records)))
    lines = [_line(name, pairs_of, "us/record", 1e6 / records) for name, pairs_of in seconds.items()]
    return [*lines, _line(f"ledger: memory with {records:,} results (a dict of offsets)", held, "MB", 1)]


def _line(name: str, pairs: Sequence[tuple[float, float]], unit: str, scale: float) -> dict[str, Any]:
    ours, theirs = (statistics.median(values) * scale for values in zip(*pairs, strict=True))
    ratio = statistics.median(their / our for our, their in pairs)
    return {
        "name": name,
        "ours": round(ours, 3),
        "theirs": round(theirs, 3),
        "unit": unit,
        "ratio": round(ratio, 2),
        "runs": len(pairs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(measure(options.records, options.runs), indent=1))


if __name__ == "__main__":
    main()
