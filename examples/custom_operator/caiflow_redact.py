"""`redact`: leave e-mail addresses and telephone numbers out of a text column. A whole caiflow operator, installable."""

import re

from caiflow.engine.operator import ColumnName, RowLLM, RowOperator, RowParams
from caiflow.engine.rows.columns import ColumnType, Row

PRIVATE = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+|\+?\d[\d ()-]{7,}\d")


class RedactParams(RowParams):
    """Fields of `redact`."""

    column: ColumnName = "response"
    """The column that is cleaned, in place."""
    mark: str = "[private]"
    """What stands for each address or number."""


class Redact(RowOperator[RedactParams]):
    """Replace e-mail addresses and telephone numbers in a text column."""

    name = "redact"
    params_type = RedactParams

    def needs(self) -> dict[str, list[str]]:
        return {self.params.input: [self.params.column]}

    def reads(self) -> list[str]:
        return [self.params.column]

    def writes(self) -> dict[str, ColumnType]:
        return {self.params.column: "text"}

    async def row(self, row: Row, _llm: RowLLM) -> Row:
        return {self.params.column: PRIVATE.sub(self.params.mark, row[self.params.column] or "")}
