"""How far a run made the same as the one whose lock lies beside its spec, in words rather than digests. Reads only.

What the other made is looked for beside the lock, as `export --results` leaves it and every run's folder has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caiflow.engine.lookback.compare import RowsDiff, rows_of_step
from caiflow.engine.plan.lock import LOCK, read_lock
from caiflow.engine.store.journal import read_run


def told(given: Path, run_dir: Path) -> Iterator[str]:
    """Yield a line for each step whose content differs from what the lock in the folder `given` has."""
    before, after = (read_lock(folder / LOCK)["steps"] for folder in (given, run_dir))
    run = read_run(run_dir)
    for step, made in after.items():
        if step not in before or made["content"] == before[step]["content"]:
            continue
        yield f"{step}: {_differs(given, run_dir, run, step)}"


def _differs(given: Path, run_dir: Path, run: Mapping[str, Any], step: str) -> str:
    if not (given / "steps" / step).is_dir():
        return "its content differs, and what it was isn't beside the lock (`caiflow export --results` brings it along)"
    diff = rows_of_step(given / "steps" / step, run_dir, run, step)
    return "its files differ (it makes no rows)" if diff is None else in_words(diff)


def in_words(diff: RowsDiff) -> str:
    """Return how the rows of a step differ: `texts equal, 0 of 29 verdicts flipped, p_a differs in 29 of 29 rows`."""
    joined = diff.same + diff.changed
    others = [(name, count) for name, count in diff.columns.items() if name not in diff.texts]
    texts = [f"{name} differs in {count:,} of {joined:,} rows" for name, count in diff.columns.items() if name in diff.texts]
    said = texts or ["texts equal"]
    if diff.flips is not None:
        said.append(f"{diff.flips:,} of {diff.pairs:,} verdicts flipped")
    said += [f"{name} differs in {count:,} of {joined:,} rows" for name, count in others]
    if diff.only_old or diff.only_new:
        said.append(f"{diff.only_old:,} rows are only there, {diff.only_new:,} only here")
    return ", ".join(said)
