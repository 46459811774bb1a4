"""Rows as the page holds them: by column, as packed text, so that no value of a row is ever part of the page's own markup."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from caiflow.engine.lookback.opened import Run, Step, Table


class Chunk(NamedTuple):
    """One table of the page: `head` says what it is, `packed` holds its columns."""

    head: dict[str, Any]
    packed: str


def chunks(run: Run, limit: int, which: str = "") -> Iterator[Chunk]:
    """Yield the rows of each step, and those it left out, at most `limit` of each; `which` tells two runs apart."""
    for step in run.values():
        if step.is_made and step.kind == "rows":
            yield _chunk(step, step.table, "rows", limit, which)
            if len(step.dropped):
                yield _chunk(step, step.dropped, "dropped", limit, which)


def packed(value: Any) -> str:
    """Return a value as compressed JSON in base64, which can't end or begin anything in HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode("ascii")


def _chunk(step: Step, table: Table, kind: str, limit: int, which: str) -> Chunk:
    rows = table.head(limit)
    columns = {name: [row[name] for row in rows] for name in table.columns}
    head = {"step": step.name, "kind": kind, "run": which, "columns": list(columns), "rows": len(rows), "of": len(table)}
    return Chunk(head, packed(columns))
