"""Measures `filter` and `mix` on a million rows, read to written, against a polars script as one would write it by hand.

Each side runs in a process of its own, in turns, on the same files. The script keeps no dropped rows, counts nothing, and holds
the mixture in memory; `filter` and `mix` do what they do in a run. Run `python -m benchmarks.tables` within tests/.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.sides import main, peak_mb, spent

ROWS = 1_000_000
DROP = ["few_shot_leak", "unchanged", "common_prefix", {"length": {"column": "revision", "min": 10, "max": 2000}}, "duplicates"]
RATIOS = {"clean": 1.0, "helpful": 0.5}


def make_data(folder: Path, rows: int) -> None:
    """Write `rows` revised rows of about 1 kB and half as many helpful ones; some are copies, unchanged or leaks."""
    import numpy as np
    import polars as pl

    from caiflow.engine.rows.folder import RowsWriter

    draw, dice = random.Random(7), np.random.default_rng(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    sentences = pl.Series([" ".join(draw.choices(words, k=draw.randint(6, 14))).capitalize() + "." for _ in range(50_000)])
    leaks = pl.Series([text for texts in _examples().values() for text in texts])

    def text(count: int, size: int) -> pl.Expr:
        picks = [pl.lit(sentences.gather(dice.integers(0, len(sentences), size))) for _ in range(count)]
        return pl.concat_str(picks, separator=" ")

    def block(name: str, start: int, size: int) -> pl.DataFrame:
        fate, leak = pl.col("n") % 100, pl.lit(leaks.gather(dice.integers(0, len(leaks), size)))
        frame = pl.DataFrame({"n": np.arange(start, start + size)}).with_columns(
            uid=pl.format(name[0] + "{}", pl.col("n").cast(pl.String).str.zfill(19)),
            prompt=pl.concat_list(pl.struct(role=pl.lit("user"), content=text(2, size))),
            response=text(5, size),
        )
        if name == "revised":
            leaked = pl.concat_str(text(2, size), leak, separator=" ")
            frame = frame.with_columns(
                revision=pl.when(fate < 3).then("response").when(fate < 5).then(leaked).otherwise(text(6, size))
            )
        twins = frame.head(size // 20).with_columns(uid=pl.col("uid") + "x")
        return pl.concat([frame.head(size - len(twins)), twins]).drop("n")

    for name, count in (("revised", rows), ("helpful", rows // 2)):
        with RowsWriter(folder / name) as out:
            for start in range(0, count, 50_000):
                out.write(block(name, start, min(50_000, count - start)))


def ours(data: Path, out: Path) -> int:
    """Filter and mix with the operators; return the rows written."""
    from caiflow.engine.constitution.load import load_constitution
    from caiflow.engine.operator import Job, StepContext
    from caiflow.engine.rows.columns import Columns
    from caiflow.engine.rows.folder import Rows, RowsWriter
    from caiflow.operators.filtering.filter import Filter
    from caiflow.operators.filtering.params import FilterParams
    from caiflow.operators.mixing.mix import Mix
    from caiflow.operators.mixing.params import MixParams

    context = StepContext(7, constitution=load_constitution("harmless", Path()))
    inputs = {"revised": Rows(data / "revised"), "helpful": Rows(data / "helpful"), "clean": Rows(out / "clean")}
    steps = (
        ("clean", Filter(FilterParams.model_validate({"input": "revised", "drop": DROP}), context)),
        ("mixed", Mix(MixParams.model_validate({"inputs": RATIOS}), context)),
    )
    for name, step in steps:
        known = {name: Columns(rows.columns) for name, rows in inputs.items() if rows.files}
        if name == "clean":
            known = {"revised": known["revised"]}
        (out / name).mkdir(parents=True)
        with RowsWriter(out / name, dict(step.columns(known).types)) as writer:
            step.table(Job(out / name, inputs), writer)
    return writer.num_rows


def theirs(data: Path, out: Path) -> int:
    """Filter and mix as a plain polars script does; return the rows written."""
    import polars as pl

    from caiflow.operators.filtering.rules import word_ngrams

    out.mkdir(parents=True)
    grams = sorted({f" {gram} " for texts in _examples().values() for text in texts for gram in word_ngrams(text, 8)})
    revision, response = pl.col("revision"), pl.col("response")
    plain = revision.str.to_lowercase().str.replace_all("['’]", "").str.replace_all(r"[\W_]+", " ")
    keep = (
        ~(pl.lit(" ") + plain + " ").str.contains_any(grams)
        & (revision.str.strip_chars() != response.str.strip_chars())
        & (revision.str.head(20) != response.str.head(20))
        & revision.str.len_chars().is_between(10, 2000)
    )
    clean = (
        pl.scan_parquet(data / "revised/*.parquet")
        .filter(keep)
        .unique(["prompt", "revision"], keep="first", maintain_order=True)
    )
    clean.sink_parquet(out / "clean.parquet", compression="zstd", compression_level=1)
    first = pl.read_parquet(out / "clean.parquet").with_columns(source_step=pl.lit("clean"), answer=revision)
    second = pl.read_parquet(data / "helpful/*.parquet").with_columns(
        source_step=pl.lit("helpful"), answer=response, revision=pl.lit(None, pl.String)
    )
    unit = min(len(first) / RATIOS["clean"], len(second) / RATIOS["helpful"])
    parts = [
        table.sample(round(unit * ratio), seed=7) for table, ratio in ((first, RATIOS["clean"]), (second, RATIOS["helpful"]))
    ]
    mixed = pl.concat(parts, how="diagonal").sample(fraction=1, shuffle=True, seed=7)
    answer = pl.struct(role=pl.lit("assistant"), content="answer")
    mixed = mixed.with_columns(messages=pl.concat_list("prompt", answer)).drop("answer")
    mixed.write_parquet(out / "mixed.parquet", compression="zstd", compression_level=1)
    return len(mixed)


SIDES: dict[str, Callable[[Path, Path], int]] = {"ours": ours, "theirs": theirs}


def measure(rows: int, repeats: int) -> list[dict[str, Any]]:
    """Return the figures: seconds and peak memory of both sides, medians of `repeats` turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, rows)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn in range(repeats):
            for side in SIDES:
                runs[side].append(spent(__file__, side, folder, folder / f"{side}{turn}"))
    written = {side: {run["rows"] for run in found} for side, found in runs.items()}
    if written["ours"] != written["theirs"]:
        raise AssertionError(f"the sides wrote different numbers of rows: {written}")
    return [
        _figure("filter + mix, seconds", "seconds", runs, f"s for {rows:,} rows"),
        _figure("filter + mix, peak memory", "memory_gb", runs, "GB"),
    ]


def _figure(name: str, key: str, runs: dict[str, list[dict[str, float]]], unit: str) -> dict[str, Any]:
    middle = {side: statistics.median(run[key] for run in found) for side, found in runs.items()}
    values = {side: [round(run[key], 3) for run in found] for side, found in runs.items()}
    return {
        "name": name,
        "ours": round(middle["ours"], 3),
        "theirs": round(middle["theirs"], 3),
        "unit": unit,
        "ratio": round(middle["theirs"] / middle["ours"], 3),
        "runs": values,
    }


def _examples() -> dict[str, list[str]]:
    from caiflow.engine.constitution.load import load_constitution

    law = load_constitution("harmless", Path())
    return {
        str(place): [*(turn["content"] for turn in example.prompt), example.response, example.critique, example.revision]
        for place, example in enumerate(law.few_shot_critique)
    }


def _one_side(side: str, data: Path, out: Path) -> None:
    import polars
    import pyarrow.parquet  # both sides start with their libraries loaded

    assert polars, pyarrow
    start = time.perf_counter()
    rows = SIDES[side](data, out)
    seconds = time.perf_counter() - start
    print(json.dumps({"rows": rows, "seconds": seconds, "memory_gb": peak_mb() / 1e3}))


if __name__ == "__main__":
    main(__doc__, SIDES, _one_side, measure, ROWS)
