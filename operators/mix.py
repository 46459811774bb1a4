"""`mix`: rows of several steps in one table, by ratio or number, drawn and shuffled by the seed, held apart from test prompts.

Owns how many rows of which input there are and what makes a row fit for training. Never takes the head of a table where a
sample is meant, and never trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from caiflow.engine.operator import ColumnName, Columns, ColumnType, Job, Params, RowsRef, Strict, TableOperator
from caiflow.operators.arrange import Arrange
from caiflow.operators.conversations import with_answer
from caiflow.operators.pool import REASONS, Pool, open_pool, prompt_keys
from caiflow.operators.sampling import ranks

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from caiflow.engine.rows import RowsWriter

Make = Literal["messages", "preference", "prompts"]
ANSWERS = ("revision", "response", "chosen")
"""The columns an answer may be in; an input without `answer` gives the first of them that it has."""


class MixInput(Strict):
    """How one input takes part."""

    ratio: float | None = Field(default=None, gt=0)
    """Its share against the other inputs' ratios."""
    rows: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """Its number of rows, whatever the others have, or `all` of them."""
    answer: ColumnName | None = None
    """Column with the answer to be learned; by default the first of revision, response, chosen that it has, else `messages`."""


class MixParams(Params):
    """Fields of `mix`."""

    trial: ClassVar[Mapping[str, Any]] = {"on_short": "take_all"}

    inputs: dict[RowsRef, Annotated[float, Field(gt=0)] | MixInput] = Field(min_length=1)
    """Steps to take rows from: a ratio, or `{ratio | rows, answer}`. Ratios give the largest mixture in which no input runs
    out."""
    anchor: RowsRef | None = None
    """The input that is taken whole and that the other ratios are relative to; by default the one that runs out first."""
    make: Literal["auto", "messages", "preference", "prompts"] = "auto"
    """`messages` adds each answer to its prompt, for sft; `preference` keeps chosen and rejected, for dpo; `prompts` adds
    nothing. `auto` goes by the columns: preference where all inputs have chosen and rejected, else messages where all have an
    answer."""
    on_short: Literal["fail", "oversample", "take_all"] = "fail"
    """What becomes of an input with fewer rows than asked for: fail, repeat its rows (none before all are in), or take what is
    there. `--sample` takes what is there."""
    shuffle: bool = True
    """Put the rows in an order drawn by the seed; otherwise input after input, each in its own order."""
    tag: str | None = Field(default="source_step", min_length=1)
    """Column that tells the step each row is from; null writes none."""
    held_out: tuple[RowsRef, ...] = ()
    """Test steps whose prompts must not be in the mixture; case and spaces don't count."""
    on_leak: Literal["fail", "drop"] = "fail"
    """What becomes of a row whose prompt is held out: fail, or leave it out and count it."""


class Mix(TableOperator[MixParams]):
    """Mix rows of several steps by ratio or number, drawn by the seed, with a leak check against test prompts."""

    name = "mix"
    params_type = MixParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return what the chosen form and the leak check look at."""
        found = {name: self._needed(name) for name in self.params.inputs}
        return {**found, **{name: ["prompt"] for name in self.params.held_out if name not in found}}

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the columns of all inputs (those of two types aside), the ones made here, and the tag."""
        mixed = {name: inputs[name] for name in self.params.inputs}
        made = self._make(mixed)
        types = _types(list(mixed.values()))
        if made == "messages":
            types["messages"] = "messages"
        if made == "preference":
            types["p_chosen"] = "number"
        if self.params.tag:
            types[self.params.tag] = "text"
        return Columns(types, any(columns.open for columns in mixed.values()))

    def check(self) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """Yield inputs that say both or neither of ratio and rows, and anchors and held-out steps that can't be."""
        for name, share in self.params.inputs.items():
            if isinstance(share, MixInput) and (share.ratio is None) == (share.rows is None):
                yield ("inputs", name), "an input takes part by `ratio` or by `rows`", "give one of the two"
        anchor = self.params.anchor
        if anchor is not None and self._ratio(anchor) is None:
            given = ", ".join(name for name in self.params.inputs if self._ratio(name) is not None)
            yield ("anchor",), f"the anchor must be an input with a ratio, got {anchor!r}", f"name one of {given}"
        for place, name in enumerate(self.params.held_out):
            if name in self.params.inputs:
                yield ("held_out", place), f"{name!r} is held out and an input at once", "remove it from one of the two"

    def identity(self) -> Mapping[str, Any]:
        """Return the seed, and the step names where they become values of a column."""
        return {"seed": self.context.seed, "tags": list(self._tags.values()) if self.params.tag else None}

    @cached_property
    def _tags(self) -> Mapping[str, str]:
        """What stands for each input: its step's name, without the arm where that's clear: arms share equal mixtures."""
        bases = [name.partition("@")[0] for name in self.params.inputs]
        return {name: base if bases.count(base) == 1 else name for name, base in zip(self.params.inputs, bases, strict=True)}

    def table(self, job: Job, out: RowsWriter) -> None:
        """Look at what each input has, draw, and write the mixture in its order; rows unfit for it are kept beside.

        Raises:
            ValueError: an input has too few rows, nothing is left, or a held-out prompt is in an input.
        """
        known = {name: Columns(job.inputs[name].columns) for name in self.params.inputs}
        make = self._make(known)
        held_out = prompt_keys([job.inputs[name] for name in self.params.held_out])
        pools = [
            open_pool(name, job.inputs[name], self._required(name, columns, make), held_out) for name, columns in known.items()
        ]
        self._count(pools, make, out)
        wanted = self._wanted({pool.name: pool.fit for pool in pools})
        parts = self._parts(pools, wanted)
        out.metrics["mixture"] = _mixture(pools, wanted)
        for table, reasons in (unfit for pool in pools for unfit in pool.unfit()):
            out.drop(table, reasons)
        schema = self._schema(known, job)
        size = sum(int(pool.row_bytes * number) for pool, number in zip(pools, wanted, strict=True))
        with Arrange(job.out_dir / "__arrange", sum(wanted), size) as arrange:
            for part in parts:
                answer = self._answer(part.pool.name, known[part.pool.name]) if make == "messages" else None
                for chosen, table in part.pool.read(part.numbers):
                    table = table.set_column(0, "uid", part.uids.slice(chosen.start, chosen.stop - chosen.start))
                    arrange.add(self._shaped(table, part.pool.name, answer, schema), part.places[chosen])
            for table in arrange.tables():
                out.write(table)

    def _needed(self, name: str) -> list[str]:
        answer = self._given_answer(name)
        if self.params.make == "preference":
            return ["prompt", "chosen", "rejected"]
        if self.params.held_out or answer or self.params.make == "prompts":
            return ["prompt", *([answer] if answer else [])]
        return ["prompt|messages", "|".join((*ANSWERS, "messages"))] if self.params.make == "messages" else ["prompt|messages"]

    def _make(self, inputs: Mapping[str, Columns]) -> Make:
        if self.params.make != "auto":
            return self.params.make
        if all("chosen" in columns.types and "rejected" in columns.types for columns in inputs.values()):
            return "preference"
        learned = all(self._answer(name, columns) or "messages" in columns.types for name, columns in inputs.items())
        return "messages" if learned else "prompts"

    def _given_answer(self, name: str) -> str | None:
        share = self.params.inputs[name]
        return share.answer if isinstance(share, MixInput) else None

    def _answer(self, name: str, columns: Columns) -> str | None:
        """Return the column an input's answers are in; None where its `messages` are taken as they are."""
        return self._given_answer(name) or next((answer for answer in ANSWERS if answer in columns.types), None)

    def _required(self, name: str, columns: Columns, make: Make) -> Sequence[str]:
        """Return the columns of an input that must not be null.

        Raises:
            ValueError: it lacks one.
        """
        answer = self._answer(name, columns)
        messages = ("prompt", answer) if answer else ("messages",)
        required = {"messages": messages, "preference": ("prompt", "chosen", "rejected"), "prompts": ("prompt",)}[make]
        if self.params.held_out:
            required = tuple(dict.fromkeys(("prompt", *required)))
        for column in required:
            if column not in columns.types:
                raise ValueError(
                    f"mix: input {name} has no column {column!r}, got {', '.join(columns.types)}; see `make` and `answer`"
                )
        return required

    def _count(self, pools: Sequence[Pool], make: Make, out: RowsWriter) -> None:
        leaks = {pool.name: pool.count("held_out") for pool in pools}
        incomplete = {pool.name: pool.count("incomplete") for pool in pools}
        out.metrics.update(make=make, incomplete=incomplete)
        if self.params.held_out:
            out.metrics["held_out"] = leaks
        if self.params.on_leak == "fail" and any(leaks.values()):
            pool = next(pool for pool in pools if leaks[pool.name])
            first = pool.uids[int((pool.states == REASONS.index("held_out")).argmax())]
            raise ValueError(
                f"mix: prompts of {pool.name} are held out by {', '.join(self.params.held_out)}, got {leaks[pool.name]} rows, "
                f"{first} the first; load both sides by one `split`, or set `on_leak: drop`"
            )

    def _ratio(self, name: str) -> float | None:
        share = self.params.inputs.get(name)
        return share.ratio if isinstance(share, MixInput) else share

    def _wanted(self, fit: Mapping[str, int]) -> list[int]:
        """Return how many rows of each input are taken.

        Raises:
            ValueError: an input has no fit rows, or fewer than asked for.
        """
        empty = [name for name, number in fit.items() if not number]
        if empty:
            raise ValueError(
                f"mix: no row of {', '.join(empty)} is fit for the mixture; look at what was dropped, or leave it out"
            )
        ratios = {name: ratio for name in fit if (ratio := self._ratio(name)) is not None}
        anchor = self.params.anchor or min(ratios, key=lambda name: fit[name] / ratios[name], default=None)
        wanted = []
        for name, share in self.params.inputs.items():
            if name in ratios and anchor is not None:
                number = round(fit[anchor] * ratios[name] / ratios[anchor])
            else:
                rows = share.rows if isinstance(share, MixInput) else None
                number = rows if isinstance(rows, int) else fit[name]
            wanted.append(self._possible(name, number, fit[name]))
        return wanted

    def _possible(self, name: str, number: int, fit: int) -> int:
        if number <= fit or self.params.on_short == "oversample":
            return number
        if self.params.on_short == "take_all":
            return fit
        raise ValueError(
            f"mix: {number} rows of {name} are asked for, got {fit}; lower its share, or let it repeat them or take all there "
            "are (`on_short: oversample` or `take_all`)"
        )

    def _parts(self, pools: Sequence[Pool], wanted: Sequence[int]) -> list[_Part]:
        """Draw rows from each pool and give each its place in the mixture."""
        import numpy as np

        draws = [pool.draw(number, self.context.seed) for pool, number in zip(pools, wanted, strict=True)]
        uids = _unique([pool.uids.take(numbers) for pool, numbers in zip(pools, draws, strict=True)])
        places = np.arange(len(uids))
        if self.params.shuffle:
            places[np.argsort(ranks(uids.to_pylist(), self.context.seed, "order"), kind="stable")] = np.arange(len(uids))
        starts = np.cumsum([0, *wanted])
        return [
            _Part(pool, numbers, uids.slice(start, len(numbers)), places[start : start + len(numbers)])
            for pool, numbers, start in zip(pools, draws, starts[:-1].tolist(), strict=True)
        ]

    def _schema(self, known: Mapping[str, Columns], job: Job) -> pa.Schema:
        """Return the mixture's columns; a type without a name here is that of the first input that has it."""
        import pyarrow as pa

        from caiflow.engine.rows import arrow_type

        fields = []
        for name, kind in self.columns(known).types.items():
            given = (job.inputs[step].schema for step in self.params.inputs if name in job.inputs[step].columns)
            fields.append(pa.field(name, arrow_type(kind) if kind else next(given).field(name).type))
        return pa.schema(fields)

    def _shaped(self, table: pa.Table, step: str, answer: str | None, schema: pa.Schema) -> pa.Table:
        """Return rows of one input with the mixture's columns."""
        import pyarrow as pa
        import pyarrow.compute as pc

        columns = dict(zip(table.column_names, table.columns, strict=True))
        if answer:
            columns["messages"] = with_answer(columns["prompt"], columns[answer])
        if self.params.tag:
            columns[self.params.tag] = pa.repeat(pa.scalar(self._tags[step]), len(table))
        if "rejected" in schema.names and "p_chosen" in schema.names:
            given = columns.get("p_chosen", pa.nulls(len(table), pa.float64()))
            columns["p_chosen"] = pc.fill_null(given, 1.0)
        arrays = [
            columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(table), field.type)
            for field in schema
        ]
        return pa.table(arrays, schema=schema)


class _Part(NamedTuple):
    """What is drawn from one pool: row numbers [K], and each one's uid and place in the mixture."""

    pool: Pool
    numbers: NDArray[np.int64]
    uids: pa.Array
    places: NDArray[np.int64]


def _mixture(pools: Sequence[Pool], wanted: Sequence[int]) -> dict[str, dict[str, float]]:
    return {
        pool.name: {"available": pool.fit, "rows": number, "share": round(number / max(1, sum(wanted)), 6)}
        for pool, number in zip(pools, wanted, strict=True)
    }


def _types(inputs: Sequence[Columns]) -> dict[str, ColumnType | None]:
    """Return the columns of all inputs with their types, without those whose types don't go together."""
    found: dict[str, set[ColumnType | None]] = {}
    for columns in inputs:
        for name, kind in columns.types.items():
            found.setdefault(name, set()).add(kind)
    joined: dict[str, ColumnType | None] = {}
    for name, kinds in found.items():
        if len(kinds) == 1:
            joined[name] = next(iter(kinds))
        elif kinds == {"integer", "number"}:
            joined[name] = "number"
        elif kinds == {"text", "json"}:
            joined[name] = "text"
    return joined


def _unique(parts: Sequence[pa.Array]) -> pa.Array:
    """Return the uids of all parts; one that was there before gets `#1`, `#2`, ... after it."""
    import polars as pl
    import pyarrow as pa

    uids = pl.Series("uid", pa.concat_arrays(parts))
    if uids.n_unique() == len(uids):
        return uids.to_arrow().cast(pa.string())
    nth = pl.int_range(pl.len()).over("uid")
    numbered = uids.to_frame().select(pl.when(nth == 0).then("uid").otherwise(pl.format("{}#{}", "uid", nth)))
    return numbered.to_series().to_arrow().cast(pa.string())
