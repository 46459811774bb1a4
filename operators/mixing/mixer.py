"""A mixture drawn and written: how many rows of each input, which, and in what order.

Owns the numbers, the draw and the rows' final form; what the parameters ask for is `mix`'s, one input's rows are `pool`'s, and
putting rows in their places is `arrange`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from caiflow.engine.errors import WrongValue
from caiflow.engine.operator import Job
from caiflow.engine.rows.columns import Columns, ColumnType
from caiflow.engine.rows.conversations import with_answer
from caiflow.engine.rows.folder import RowsWriter, arrow_type
from caiflow.operators.mixing.draws import ranks
from caiflow.operators.mixing.naming import Naming, naming_of
from caiflow.operators.mixing.order import Arrange
from caiflow.operators.mixing.params import Make, MixParams
from caiflow.operators.mixing.pool import Draw, Pool, open_pool, prompt_keys


class Mixer:
    """One mixture in the making; `types` are its columns."""

    def __init__(self, params: MixParams, types: Mapping[str, ColumnType | None], seed: int, job: Job) -> None:
        self._params, self._types, self._seed, self._job = params, types, seed, job
        self._known = {name: Columns(job.inputs[name].columns) for name in params.inputs}
        self._make = params.form(self._known)

    def write(self, out: RowsWriter) -> None:
        """Look at what each input has, draw, and write the mixture in its order; rows unfit for it are kept beside.

        Raises:
            ValueError: an input has too few rows, nothing is left, or a held-out prompt is in an input.
        """
        inputs = self._job.inputs
        held_out = prompt_keys([inputs[name] for name in self._params.held_out])
        pools = [open_pool(name, inputs[name], self._required(name), held_out, self._seed) for name in self._known]
        self._count(pools, out)
        self._refuse_empty([pool for pool in pools if not pool.fit])
        wanted = self._wanted({pool.name: pool.fit for pool in pools})
        drawn = [pool.draw(number) for pool, number in zip(pools, wanted, strict=True)]
        naming = naming_of(pools, drawn, self._seed)
        out.metrics["mixture"] = _mixture(pools, wanted)
        for table, reasons in (unfit for pool in pools for unfit in pool.unfit()):
            out.drop(table, reasons)
        schema = self._schema()
        if left := sorted({name for columns in self._known.values() for name in columns.types} - set(schema.names)):
            out.metrics["columns_left_out"] = left  # of two types that don't go together
        rows = self._rows(pools, drawn, naming, schema)
        if not self._params.shuffle:
            for table in rows:
                out.write(table)
            return
        size = sum(int(self._row_bytes(pool, schema) * number) for pool, number in zip(pools, wanted, strict=True))
        with Arrange(self._job.out_dir / "__arrange", size) as arrange:
            for table in rows:
                arrange.add(table, ranks(table.column("uid"), self._seed, "order"))
            for table in arrange.tables():
                out.write(table)

    def _rows(
        self, pools: Sequence[Pool], drawn: Sequence[Draw], naming: Naming | None, schema: pa.Schema
    ) -> Iterator[pa.Table]:
        """Yield the drawn rows, one pool after the other, in their final form."""
        for pool, draw in zip(pools, drawn, strict=True):
            for table in pool.read(draw):
                if naming is not None:
                    table = table.set_column(0, "uid", naming.named(table.column("uid")))
                yield self._shaped(table, pool.name, schema)

    def _row_bytes(self, pool: Pool, schema: pa.Schema) -> float:
        return pool.row_bytes(lambda table: self._shaped(table, pool.name, schema))

    def _required(self, name: str) -> Sequence[str]:
        """Return the columns of an input that must not be null.

        Raises:
            ValueError: it lacks one.
        """
        columns = self._known[name]
        answer = self._params.answer_of(name, columns)
        messages = ("prompt", answer) if answer else ("messages",)
        wanted: Mapping[Make, tuple[str, ...]] = {
            "messages": messages,
            "preference": ("prompt", "chosen", "rejected"),
            "prompts": ("prompt",),
        }
        required = wanted[self._make]
        if self._params.held_out:
            required = tuple(dict.fromkeys(("prompt", *required)))
        for column in required:
            if column not in columns.types:
                raise WrongValue(
                    f"mix: input {name} has no column {column!r}, got {', '.join(columns.types)}", "see `make` and `answer`"
                )
        return required

    def _count(self, pools: Sequence[Pool], out: RowsWriter) -> None:
        leaks = {pool.name: pool.count("held_out") for pool in pools}
        incomplete = {pool.name: pool.count("incomplete") for pool in pools}
        out.metrics.update(make=self._make, incomplete=incomplete)
        if self._params.held_out:
            out.metrics["held_out"] = leaks
        if self._params.on_leak == "fail" and any(leaks.values()):
            pool = next(pool for pool in pools if leaks[pool.name])
            raise WrongValue(
                f"mix: prompts of {pool.name} are held out by {', '.join(self._params.held_out)}, got {leaks[pool.name]} rows, "
                f"{pool.uid_of('held_out')} the first",
                "load both sides by one `split`, or set `on_leak: drop`",
            )

    def _refuse_empty(self, empty: Sequence[Pool]) -> None:
        if empty:
            told = "; ".join(pool.why_none() for pool in empty)
            hint = "incomplete rows lack a prompt or an answer, held-out ones are in a test; leave it out, or mend its step"
            raise WrongValue(f"mix: no row of {', '.join(pool.name for pool in empty)} is fit for the mixture ({told})", hint)

    def _wanted(self, fit: Mapping[str, int]) -> list[int]:
        """Return how many rows of each input are taken.

        Raises:
            ValueError: an input has fewer fit rows than asked for.
        """
        return [self._possible(name, number, fit[name]) for name, number in self._params.wanted(fit).items()]

    def _possible(self, name: str, number: int, fit: int) -> int:
        if number <= fit or self._params.on_short == "oversample":
            return number
        if self._params.on_short == "take_all":
            return fit
        raise WrongValue(
            f"mix: {number} rows of {name} are asked for, got {fit}",
            "lower its share, or let it repeat them or take all there are (`on_short: oversample` or `take_all`)",
        )

    def _schema(self) -> pa.Schema:
        """Return the mixture's columns; a type without a name here is what holds those of all inputs that have it."""
        fields = []
        inputs = [self._job.inputs[step] for step in self._params.inputs]
        for name, kind in self._types.items():
            given = [rows.schema.field(name).type for rows in inputs if name in rows.columns]
            if (joined := arrow_type(kind) if kind else _joined(given)) is not None:
                fields.append(pa.field(name, joined))
        return pa.schema(fields)

    def _shaped(self, table: pa.Table, step: str, schema: pa.Schema) -> pa.Table:
        """Return rows of one input with the mixture's columns."""
        columns = dict(zip(table.column_names, table.columns, strict=True))
        answer = self._params.answer_of(step, self._known[step]) if self._make == "messages" else None
        if answer:
            columns["messages"] = with_answer(columns["prompt"], columns[answer])
        if self._params.tag:
            columns[self._params.tag] = pa.repeat(pa.scalar(self._params.tags()[step]), len(table))
        if "rejected" in schema.names and "p_chosen" in schema.names:
            given = columns.get("p_chosen", pa.nulls(len(table), pa.float64()))
            columns["p_chosen"] = pc.fill_null(given, 1.0)
        arrays = [
            columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(table), field.type)
            for field in schema
        ]
        return pa.table(arrays, schema=schema)


def _joined(types: Sequence[pa.DataType]) -> pa.DataType | None:
    """Return the type of objects with the fields of all, or of lists of such; None where there is none that loses nothing."""
    try:
        return pa.unify_schemas([pa.schema([("one", kind)]) for kind in types], promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _mixture(pools: Sequence[Pool], wanted: Sequence[int]) -> dict[str, dict[str, float]]:
    return {
        pool.name: {"available": pool.fit, "rows": number, "share": round(number / max(1, sum(wanted)), 6)}
        for pool, number in zip(pools, wanted, strict=True)
    }
