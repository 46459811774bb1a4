"""`map`: columns made of others, joined, renamed or left out; rows and their uids stay.

Owns what a column may become; the texts are rendered by `templates`. Never asks a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from caiflow.engine.errors import Finding, WrongValue
from caiflow.engine.llm.base import Message
from caiflow.engine.operator import ColumnName, Job, Params, RowsRef, Strict, TableOperator
from caiflow.engine.rows.columns import Columns, ColumnType, Row
from caiflow.engine.rows.types import arrow_type, column_type
from caiflow.operators.formats.templates import TemplateText, names_in, rendered

if TYPE_CHECKING:
    import pyarrow as pa

    from caiflow.engine.rows.folder import RowsWriter

_BATCH = 1024
_KINDS: Mapping[str, ColumnType] = {
    **dict.fromkeys(("prompt", "messages"), "messages"),
    **dict.fromkeys(("response", "critique", "revision", "principle", "chosen", "rejected"), "text"),
    "p_chosen": "number",
}
"""caiflow's own columns and the type each has."""
_MADE: Mapping[str, str] = {"messages": "conversations", "p_chosen": "numbers", "uid": "names of rows"}
"""caiflow's columns that no text can be, and what they hold."""


class Join(Strict):
    """Columns put together in one text."""

    columns: tuple[ColumnName, ...] = Field(min_length=1)
    """The columns, in order; those that are null or blank are passed over."""
    separator: str = "\n\n"
    """What stands between two of them."""


class MapParams(Params):
    """Fields of `map`."""

    input: RowsRef
    """The step whose rows are read."""
    set: dict[str, TemplateText] = Field(default_factory=dict)
    """Columns to make, each by a Jinja text over the row's columns, such as `{prompt: "{{ context }}\\n\\n{{ question }}"}`."""
    join: dict[str, tuple[ColumnName, ...] | Join] = Field(default_factory=dict)
    """Columns to make of others, with a blank line between: `{prompt: [context, question]}`, or `{columns, separator}`."""
    rename: dict[ColumnName, str] = Field(default_factory=dict)
    """Columns to rename, from the name they have to the one they get; after `set` and `join`."""
    drop: tuple[ColumnName, ...] = ()
    """Columns to leave out."""

    @model_validator(mode="after")
    def _does_something(self) -> MapParams:
        if not (self.set or self.join or self.rename or self.drop):
            raise WrongValue("`map` changes nothing", "give it `set`, `join`, `rename` or `drop`")
        return self

    def joins(self) -> Mapping[str, Join]:
        """Return what to join, written out."""
        return {name: how if isinstance(how, Join) else Join(columns=how) for name, how in self.join.items()}


class Map(TableOperator[MapParams]):
    """Make, join, rename and leave out columns; a text that becomes `prompt` is one turn of the user."""

    name = "map"
    params_type = MapParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns that are named, and those that the texts speak of."""
        given = self.params
        told = [name for text in given.set.values() for name in names_in(text)]
        joined = [name for how in given.joins().values() for name in how.columns]
        made = {*given.set, *given.join}
        changed = [name for name in (*given.rename, *given.drop) if name not in made]
        return {given.input: list(dict.fromkeys([*told, *joined, *changed]))}

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the input's columns with the new ones, under their new names, without those left out."""
        (columns,) = inputs.values()
        made = dict.fromkeys((*self.params.set, *self.params.join))
        columns = columns.plus({name: _type(name) for name in made})
        old = self.params.rename
        types: dict[str, ColumnType | None] = {}
        for name, new in old.items():
            kind = columns.types.get(name)
            types[new] = "messages" if (new, kind) == ("prompt", "text") else kind
        gaps = {new: columns.gaps[name] for name, new in old.items() if name in columns.gaps}
        kept = columns.without({*self.params.drop, *old}).plus(types)
        return replace(kept, gaps={**kept.gaps, **gaps})

    def check(self) -> Iterator[Finding]:
        """Yield columns that can't be made or changed."""
        for field in ("set", "join"):
            for name in getattr(self.params, field):
                if name in _MADE:
                    yield Finding(
                        (field, name), f"`{name}` holds {_MADE[name]}, which a text can't be", "give the column another name"
                    )
        if "uid" in self.params.drop:
            yield Finding(("drop", self.params.drop.index("uid")), "`uid` names the rows", "leave it")
        yield from self._check_renames()

    def _check_renames(self) -> Iterator[Finding]:
        made = {*self.params.set, *self.params.join}
        seen: set[str] = set()
        for old, new in self.params.rename.items():
            if "uid" in (old, new):
                yield Finding(("rename", old), "`uid` names the rows", "leave it")
            elif new in made or new in seen:
                yield Finding(("rename", old), f"two columns become `{new}`", "give one of them another name")
            seen.add(new)

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield new names that other columns have, and those that their type can't have."""
        (columns,) = inputs.values()
        gone = {*self.params.drop, *self.params.rename}
        for old, new in self.params.rename.items():
            if new in columns.types and new not in gone:
                hint = f"add it to `drop`, or rename it too: `{new}: source_{new}`"
                yield Finding(("rename", old), f"there is a column `{new}` already", hint)
            elif (kind := columns.types.get(old)) and not _fits(new, kind):
                told = f"`{new}` is of type {_KINDS[new]}, and `{old}` of type {kind}"
                yield Finding(("rename", old), told, "give it another name")

    def table(self, job: Job, out: RowsWriter) -> None:
        """Change the rows batch by batch; columns that stay keep their values as they are.

        Raises:
            ValueError: a text can't be rendered for a row; it is named.
        """
        import pyarrow as pa

        given = job.inputs[self.params.input]
        for batch in given.batches(_BATCH):
            table = pa.Table.from_batches([batch])
            out.write(self._changed(table))
            if job.log:
                job.log(done=out.num_rows)

    def _changed(self, table: pa.Table) -> pa.Table:
        rows: list[Row] = (
            table.to_pylist() if self.params.set or self.params.join or "prompt" in self.params.rename.values() else []
        )
        for name, text in self.params.set.items():
            table = _with(table, name, [_text(name, text, row) for row in rows])
        for name, how in self.params.joins().items():
            table = _with(table, name, [_together(row, how) for row in rows])
        table = table.drop_columns([name for name in self.params.drop if name in table.column_names])
        table = table.rename_columns([self.params.rename.get(name, name) for name in table.column_names])
        if "prompt" in table.column_names and column_type(table.schema.field("prompt").type) == "text":
            asked = zip(rows, table["prompt"].to_pylist(), strict=True)
            table = _with(table, "prompt", [_turns(row, text) for row, text in asked], "messages")
        return table


def _with(table: pa.Table, name: str, values: list[Any], kind: ColumnType = "text") -> pa.Table:
    """Return a table with a column of texts or turns, in the place of the one that has its name, or as the last."""
    import pyarrow as pa

    column = pa.array(values, arrow_type(kind))
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _text(name: str, text: str, row: Row) -> str:
    try:
        return rendered(text, row, f"the template of `{name}`")
    except ValueError as error:
        raise ValueError(f"row {row['uid']}: {error}") from error


def _together(row: Row, how: Join) -> str | None:
    """Return a row's texts in one; null where it has none. Numbers and the like are written as JSON does."""
    found = [row[name] for name in how.columns if row.get(name) is not None]
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) for value in found]
    return how.separator.join(text for text in texts if text.strip()) or None


def _turns(row: Row, text: str | None) -> list[Message] | None:
    """Return a text as the user's turn, after the system turns that the row's prompt had."""
    given = row.get("prompt")
    lead = [turn for turn in given if turn["role"] == "system"] if isinstance(given, list) else []
    return None if text is None else [*lead, Message(role="user", content=text)]


def _type(name: str) -> ColumnType:
    return "messages" if name == "prompt" else "text"


def _fits(name: str, kind: ColumnType) -> bool:
    """Return whether a column of a type may have a name that means something."""
    wanted = _KINDS.get(name)
    return wanted in (None, kind) or (name, kind) in (("prompt", "text"), ("p_chosen", "integer"))
