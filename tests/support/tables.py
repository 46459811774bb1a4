"""Runs table operators as the runner does, on folders of a test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import Message, ModelSource
from caiflow.engine.operator import Job, TableOperator
from caiflow.engine.rows.columns import Columns, Row
from caiflow.engine.rows.folder import Rows, RowsWriter


def rows_of(folder: Path, rows: Sequence[Row]) -> Rows:
    """Write rows as a step would have."""
    with RowsWriter(folder) as out:
        out.write_rows(rows)
    return Rows(folder)


def run_table(
    operator: TableOperator[Any],
    folder: Path,
    inputs: Mapping[str, Rows] | None = None,
    models: Mapping[str, ModelSource] | None = None,
) -> tuple[Rows, dict[str, Any]]:
    """Carry a table operator out; return its rows and metrics."""
    given = dict(inputs or {})
    known = {name: Columns(rows.columns) for name, rows in given.items()}
    folder.mkdir(parents=True)
    with RowsWriter(folder, dict(operator.columns(known).types)) as out:
        operator.table(Job(folder, given, models or {}), out)
    return Rows(folder), out.metrics


def ask(text: str) -> list[Message]:
    """Return a prompt of one user turn."""
    return [Message(role="user", content=text)]


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write records as lines."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path
