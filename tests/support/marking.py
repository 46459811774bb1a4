"""An operator that asks no model and takes a lock, where other processes find it."""

from __future__ import annotations

import threading
from typing import Any

from caiflow.engine.operator import RowLLM, RowOperator, RowParams
from caiflow.engine.rows.columns import ColumnType, Row

LOCK = threading.Lock()
"""As libraries have them: another thread may hold it at any moment."""


class Mark(RowOperator[RowParams]):
    """Writes a mark."""

    name = "mark"
    params_type = RowParams

    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def writes(self) -> dict[str, ColumnType]:
        return {"mark": "text"}

    def row_identity(self, row: Row) -> Any:
        return {row["text"]} if row["text"] == "unstable" else None

    def calls_for(self, row: Row, coming: Any = ()) -> int:
        if not LOCK.acquire(timeout=5):
            raise TimeoutError("who held the lock isn't here to let it go")
        LOCK.release()
        return 1

    async def row(self, row: Row, llm: RowLLM) -> Row:
        return {"mark": row["text"]}
