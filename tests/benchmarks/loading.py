"""Measures `load` of pairs of transcripts against polars, which parses the same file and writes it as it is; and what it holds.

Each side runs in a process of its own, in turns, on one file; seconds of the CPU count, over all threads. The memory is the
peak of `load`, `filter` and `mix` in one process, for five times the rows over the rows. Run `python -m benchmarks.loading`
within tests/.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.sides import main, peak_mb, spent
from caiflow.engine.rows.folder import Rows, RowsWriter  # before Arrow, to whose allocator it speaks

ROWS = 200_000
TARGET, GROWTH = 4.0, 1.1


def make_file(path: Path, rows: int) -> None:
    """Write pairs of transcripts of about 1 kB, one in 200 with two turns of one role after each other, as real ones have."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    said = [" ".join(draw.choices(words, k=draw.randint(6, 40))).capitalize() + "." for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            asked, answered, again, better, worse = draw.choices(said, k=5)
            turn = "Human" if row % 200 == 7 else "Assistant"
            begun = f"\n\nHuman: {asked} {row}?\n\n{turn}: {answered}\n\n{said[row % 100]}\n\nHuman: {again}\n\nAssistant: "
            file.write(json.dumps({"chosen": begun + better, "rejected": begun + worse}) + "\n")


def ours(source: Path, out: Path) -> None:
    """Load the file as a run does."""
    from caiflow.operators.formats.params import LoadParams
    from caiflow.operators.load import Load

    _table(Load, LoadParams(source=str(source)), {}, out / "loaded")


def all_three(source: Path, out: Path) -> None:
    """Load, filter and mix."""
    from caiflow.operators.filtering.filter import Filter
    from caiflow.operators.filtering.params import FilterParams
    from caiflow.operators.mixing.mix import Mix
    from caiflow.operators.mixing.params import MixParams

    ours(source, out)
    drop = [{"length": {"column": "chosen", "min": 40}}, "duplicates"]
    _table(Filter, FilterParams.model_validate({"input": "loaded", "drop": drop}), {"loaded": out / "loaded"}, out / "clean")
    _table(
        Mix, MixParams.model_validate({"inputs": {"clean": 1.0}, "make": "preference"}), {"clean": out / "clean"}, out / "mixed"
    )


def _table(operator_type: Any, params: Any, inputs: dict[str, Path], out: Path) -> None:
    from caiflow.engine.operator import Job, StepContext
    from caiflow.engine.rows.columns import Columns

    step, given = operator_type(params, StepContext(7)), {name: Rows(folder) for name, folder in inputs.items()}
    out.mkdir(parents=True)
    with RowsWriter(out, dict(step.columns({name: Columns(rows.columns) for name, rows in given.items()}).types)) as writer:
        step.table(Job(out, given), writer)


def theirs(source: Path, out: Path) -> None:
    """Parse the file with polars and write what is in it."""
    import polars as pl

    out.mkdir(parents=True)
    pl.read_ndjson(source).write_parquet(out / "rows.parquet", compression="zstd", compression_level=1)


SIDES: dict[str, Callable[[Path, Path], None]] = {"ours": ours, "theirs": theirs, "all_three": all_three}


def measure(rows: int = ROWS, repeats: int = 3) -> list[dict[str, Any]]:
    """Return both figures beside their bounds; medians of `repeats` turns."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        small, large = scratch / "small.jsonl", scratch / "large.jsonl"
        make_file(small, rows)
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            for side, values in found.items():
                values.append(spent(__file__, side, small, scratch / "out")["cpu_s"] * 1e6 / rows)
        make_file(large, 5 * rows)
        peaks = [spent(__file__, "all_three", source, scratch / "out")["memory_mb"] for source in (small, large)]
    middle = {side: statistics.median(values) for side, values in found.items()}
    cpu, memory = middle["ours"] / middle["theirs"], peaks[1] / peaks[0]
    return [
        _line("load, CPU over polars", cpu, TARGET, f"times, {rows:,} rows", found),
        _line("load, filter and mix, peak memory of five times the rows", memory, GROWTH, "times", {"MB": peaks}),
    ]


def _line(what: str, ours: float, bound: float, unit: str, runs: dict[str, list[float]]) -> dict[str, Any]:
    rounded = {side: [round(value, 2) for value in values] for side, values in runs.items()}
    figures = {"ours": round(ours, 3), "theirs": bound, "unit": unit, "ratio": round(bound / ours, 3), "runs": rounded}
    return {"name": f"floor: {what}", **figures}


def _one_side(side: str, source: Path, out: Path) -> None:
    import polars
    import pyarrow as pa
    import pyarrow.parquet  # both sides start with their libraries loaded

    assert polars, pa.array([1])
    before = resource.getrusage(resource.RUSAGE_SELF)
    SIDES[side](source, out)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"cpu_s": cpu_s, "memory_mb": peak_mb()}))


if __name__ == "__main__":
    main(__doc__, SIDES, _one_side, measure, ROWS)
