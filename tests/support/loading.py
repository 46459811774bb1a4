"""Loads records as a file of any kind has them, and makes texts that look like something else."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from caiflow.engine.operator import StepContext
from caiflow.engine.rows.columns import Row
from caiflow.operators.load import Load, LoadParams
from support.tables import run_table, write_jsonl

KINDS = ("jsonl", "json", "csv", "parquet")
"""The kinds of files that `write` writes, by their suffix."""
TEMPTING = (
    "[Your Name]\nDear Ann,", "[1, 2]", "[]", "[[[", '{"a": 1}', '[{"name": "Ann"}] as a sentence', '[{"role": 1}]',
    "System: Windows 11 is slow.", "Human: a noun?", "Assistant: who?", "[INST] hello [/INST]", "null", "a\n\nSystem: b",
)  # fmt: skip

texts = st.one_of(
    st.sampled_from(TEMPTING),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.builds("{}{}".format, st.sampled_from(("[", "[{", "System:", "Human:", "\n\nHuman:", "{", "- ")), st.text(max_size=20)),
).filter(lambda text: bool(text.strip()) and "\x00" not in text and text.isprintable() | ("\n" in text))
"""What people ask and answer, most of it looking like something else."""


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, records[0])
            rows.writeheader()
            rows.writerows(records)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    else:
        write_jsonl(path, records)
    return path


def load(path: Path, **fields: Any) -> tuple[list[Row], dict[str, Any]]:
    step = Load(LoadParams(source=path.name, **fields), StepContext(base_dir=path.parent))
    rows, metrics = run_table(step, path.parent / f"out{len(list(path.parent.glob('out*')))}")
    return rows.pylist(), metrics


def loaded(records: list[dict[str, Any]], kind: str = "jsonl", **fields: Any) -> list[Row]:
    with TemporaryDirectory() as folder:
        return load(write(Path(folder) / f"some.{kind}", records), **fields)[0]


def said(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]
