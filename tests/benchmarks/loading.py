"""Measures `load` of pairs of transcripts against polars, which parses the same file and writes it as it is; and what it holds.

Each side runs in a process of its own, in turns, on one file; seconds of the CPU count, over all threads. The memory is the
peak of `load`, `filter` and `mix` in one process, for five times the rows over the rows. Run `python -m benchmarks.loading`
within tests/. `many` short rows are put through the three, too, each step's peak by itself: ten million in less than 4 GB.
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

from benchmarks.sides import main, peak_from_now, spent
from caiflow.engine.rows.folder import Rows, RowsWriter  # before Arrow, to whose allocator it speaks

ROWS = 200_000
TARGET, GROWTH = 4.0, 1.1
MANY, MOST_GB = 10_000_000, 4.0


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


def make_short(path: Path, rows: int) -> None:
    """Write prompts and answers of about 110 bytes together, one prompt in 50 a copy."""
    import numpy as np
    import polars as pl

    draw, dice = random.Random(7), np.random.default_rng(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    said = pl.Series([" ".join(draw.choices(words, k=draw.randint(4, 8))) for _ in range(20_000)])
    with path.open("wb") as file:
        for start in range(0, rows, 500_000):
            number = np.arange(start, min(rows, start + 500_000))
            asked, answered = (said.gather(dice.integers(0, len(said), len(number))) for _ in range(2))
            frame = pl.DataFrame({"n": number, "asked": asked, "response": answered})
            asked_as = pl.when(pl.col("n") % 50 == 7).then(pl.lit("Again?")).otherwise(pl.format("{} {}?", "asked", "n"))
            frame.select(asked_as.alias("prompt"), "response").write_ndjson(file)


def ours(source: Path, out: Path) -> None:
    """Load the file as a run does."""
    from caiflow.operators.formats.params import LoadParams
    from caiflow.operators.load import Load

    _table(Load, LoadParams(source=str(source)), {}, out / "loaded")


def all_three(source: Path, out: Path) -> dict[str, float]:
    """Load, filter and mix pairs; return each step's peak."""
    return _three(source, out, "chosen", "preference")


def all_three_short(source: Path, out: Path) -> dict[str, float]:
    """Load, filter and mix prompts with answers; return each step's peak."""
    return _three(source, out, "response", "messages")


def _three(source: Path, out: Path, column: str, make: str) -> dict[str, float]:
    from caiflow.operators.filtering.filter import Filter
    from caiflow.operators.filtering.params import FilterParams
    from caiflow.operators.mixing.mix import Mix
    from caiflow.operators.mixing.params import MixParams

    drop = [{"length": {"column": column, "min": 10}}, {"duplicates": {"columns": ["prompt"]}}]
    filtering = FilterParams.model_validate({"input": "loaded", "drop": drop})
    mixing = MixParams.model_validate({"inputs": {"clean": 1.0}, "make": make})
    return {
        "load": peak_from_now(lambda: ours(source, out)),
        "filter": peak_from_now(lambda: _table(Filter, filtering, {"loaded": out / "loaded"}, out / "clean")),
        "mix": peak_from_now(lambda: _table(Mix, mixing, {"clean": out / "clean"}, out / "mixed")),
    }


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


SIDES: dict[str, Callable[[Path, Path], dict[str, float] | None]] = {
    "ours": ours,
    "theirs": theirs,
    "all_three": all_three,
    "all_three_short": all_three_short,
}


def measure(rows: int = ROWS, repeats: int = 3, many: int = MANY) -> list[dict[str, Any]]:
    """Return the figures beside their bounds; medians of `repeats` turns."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        small, large = scratch / "small.jsonl", scratch / "large.jsonl"
        make_file(small, rows)
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            for side, values in found.items():
                values.append(spent(__file__, side, small, scratch / "out")["cpu_s"] * 1e6 / rows)
        make_file(large, 5 * rows)
        steps = [_peaks("all_three", source, scratch / "out") for source in (small, large)]
        large.unlink()
        make_short(small, many)
        short = _peaks("all_three_short", small, scratch / "out")
    middle = {side: statistics.median(values) for side, values in found.items()}
    cpu, memory = middle["ours"] / middle["theirs"], max(steps[1].values()) / max(steps[0].values())
    return [
        _line("load, CPU over polars", cpu, TARGET, f"times, {rows:,} rows", found),
        _line("load, filter and mix, peak memory of five times the rows", memory, GROWTH, "times", _by_step(*steps)),
        _line(
            "load, filter and mix, peak memory", max(short.values()) / 1e3, MOST_GB, f"GB, {many:,} short rows", _by_step(short)
        ),
    ]


def _peaks(side: str, source: Path, out: Path) -> dict[str, float]:
    """Return what each step of a side held at its peak, in MB."""
    found = spent(__file__, side, source, out)
    return {step: found[step] for step in ("load", "filter", "mix")}


def _by_step(*peaks: dict[str, float]) -> dict[str, list[float]]:
    return {f"{step}, MB": [one[step] for one in peaks] for step in peaks[0]}


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
    told = SIDES[side](source, out) or {}
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"cpu_s": cpu_s, **told}))


if __name__ == "__main__":
    main(__doc__, SIDES, _one_side, measure, ROWS)
