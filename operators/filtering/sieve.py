"""Rows put through rules: all are asked at once, and the first that finds fault with a row is its reason.

Owns the order in which rules speak, their names in the figures, and the way from a rule's parameters to its check.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from caiflow.engine.errors import WrongValue
from caiflow.engine.health import SHOWN_UIDS
from caiflow.engine.operator import ANSWERS, Job, Passing
from caiflow.engine.rows.columns import answer_column
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.operators.filtering import rules
from caiflow.operators.filtering.expression import parse
from caiflow.operators.filtering.expression_polars import compiled
from caiflow.operators.filtering.params import Compared, Duplicates, Length, Rule, labels

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

Schema = Mapping[str, pl.DataType]
_BATCH = 1024  # rows: what polars holds meanwhile goes by it, and its allocator keeps some of that, more with each batch


class Sieve:
    """The rules of one step.

    `examples` gives the words of the few-shot examples by name; `job` has the models whose tokenizers count.
    """

    def __init__(
        self,
        given: Sequence[Rule],
        examples: Callable[[], Mapping[str, Sequence[str]]],
        job: Job,
    ) -> None:
        self._rules, self._examples, self._job = given, examples, job

    def passing(self) -> Passing:
        """Return what says of rows, piece by piece, which no rule finds fault with."""
        sifted: list[_Sifting] = []

        def passes(batch: pa.RecordBatch) -> list[bool]:
            frame = _frame(batch)
            if not sifted:
                sifted.append(_Sifting(self._checks(frame.schema), frame.schema))
            _, reasons = sifted[0].sift(frame.with_columns(sifted[0].flags))
            passed: list[bool] = (reasons < 0).tolist()
            return passed

        return passes

    def pour(self, name: str, rows: Rows, out: RowsWriter, most: int | None = None) -> None:
        """Write the rows of a step that no rule finds fault with, `most` at the most, keep the others beside, and count them.

        Raises:
            ValueError: an expression or column doesn't fit the rows.
        """
        schema = dict(rows.scan().collect_schema())
        checks = self._checks(schema)
        dropped = np.zeros(len(checks), np.int64)
        sifting = _Sifting(checks, schema)
        names_of = pl.Series([check.label for check in checks], dtype=pl.String)
        try:
            for batch in rows.batches(_BATCH):  # polars' own scan reads many row groups ahead
                given = _frame(batch)
                frame, reasons = sifting.sift(given.with_columns(sifting.flags))
                alive = reasons < 0
                if most is not None and out.num_rows + alive.sum() > most:
                    rest = np.flatnonzero(alive)[most - out.num_rows] if most > out.num_rows else 0
                    frame, alive, reasons = frame.head(int(rest)), alive[:rest], reasons[:rest]
                out.write(frame if alive.all() else frame.filter(pl.Series(alive)))
                if not alive.all():
                    gone = reasons[~alive]
                    lost = frame.filter(pl.Series(~alive))
                    self._remember(lost["uid"], gone, names_of)
                    out.drop(lost, names_of.gather(gone))
                    dropped += np.bincount(gone, minlength=len(checks))
                if self._job.log:
                    self._job.log(done=out.num_rows + out.num_dropped)
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"filter: a rule doesn't fit the columns of {name}: {error}") from error
        if most is not None:
            out.metrics |= {"wanted": most, "lacking": most - out.num_rows}
        out.metrics["dropped"] = {check.label: int(number) for check, number in zip(checks, dropped, strict=True)}

    def _remember(self, uids: pl.Series, rules_of: NDArray[np.int64], names: pl.Series) -> None:
        """Name the first rows that each rule leaves out, for the step's notes."""
        for rule in np.unique(rules_of):
            kept = self._job.uids.setdefault(f"dropped_{names[int(rule)]}", [])
            kept += uids.gather(np.flatnonzero(rules_of == rule)[: SHOWN_UIDS - len(kept)]).to_list()

    def _checks(self, schema: Schema) -> list[rules.Check]:
        names = labels([rule.kind for rule in self._rules])
        return [self._made(rule, label, schema) for rule, label in zip(self._rules, names, strict=True)]

    def _made(self, rule: Rule, label: str, schema: Schema) -> rules.Check:
        """Return one rule made ready for rows with these columns."""
        fields: Any = getattr(rule, rule.kind)
        if rule.where is not None:
            floats = [name for name, kind in schema.items() if kind.is_float()]
            return rules.Check(label, compiled(parse(rule.where), floats))
        if isinstance(fields, Duplicates):
            default = [name for name in ("prompt", answer_column(schema)) if name and name in schema]
            return rules.duplicates(label, fields.columns or default, schema)
        if isinstance(fields, Length):
            return self._length(fields, label)
        column = fields.column or answer_column(schema) or ANSWERS[0]
        if isinstance(fields, Compared) and column == fields.other:
            raise WrongValue(f"filter: {label} compares `{column}` with itself", "name another `column` or `other`")
        made: Mapping[str, Callable[[], rules.Check]] = {
            "few_shot_leak": lambda: rules.few_shot_leak(label, [column], self._examples(), fields.n, schema),
            "unchanged": lambda: rules.unchanged(label, column, fields.other),
            "copies": lambda: rules.copies(label, column, fields.of, fields.share, self._examples),
            "common_prefix": lambda: rules.common_prefix(label, column, fields.other, fields.chars),
            "role_prefixes": lambda: rules.role_prefixes(label, column, fields.roles),
            "repetition": lambda: rules.repetition(label, column, fields.n, fields.max),
            "preamble": lambda: rules.preamble(label, column, fields.phrases),
        }
        return made[rule.kind]()

    def _length(self, fields: Length, label: str) -> rules.Check:
        if fields.unit == "characters":
            return rules.length_in_characters(label, fields.column, fields.min, fields.max)
        from caiflow.engine.llm.files import load_tokenizer

        tokenizer = load_tokenizer(self._job.models[fields.model or ""])
        return rules.length_in_tokens(label, fields.column, fields.min, fields.max, tokenizer)


class _Sifting:
    """Checks at work on pieces of rows, one after the other; `flags` are columns that `sift` wants beside the rows' own."""

    def __init__(self, checks: Sequence[rules.Check], schema: Schema) -> None:
        self._checks = checks
        self._names = _free_names(len(checks), schema)
        self.flags = [check.flag.alias(name) for name, check in zip(self._names, checks, strict=True)]

    def sift(self, flagged: pl.DataFrame) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        """Return the rows without flags, and for each the first check that leaves it out, or -1."""
        found, frame = flagged.select(self._names), flagged.drop(self._names)
        _refuse_values(found, self._checks)
        return frame, _reasons(frame, found, self._checks)


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """Return rows as polars has them, each column under its own name: polars gives one to a column without."""
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    frame.columns = batch.schema.names
    return frame


def _free_names(count: int, taken: Container[str]) -> list[str]:
    """Return names for the checks' columns that no column has."""
    prefix = "flag"
    while any(f"{prefix}{place}" in taken for place in range(count)):
        prefix = f"_{prefix}"
    return [f"{prefix}{place}" for place in range(count)]


def _refuse_values(flags: pl.DataFrame, checks: Sequence[rules.Check]) -> None:
    """Raise ValueError where a rule without a decision of its own says something other than true or false."""
    for check, kind in zip(checks, flags.dtypes, strict=True):
        if check.decide is None and kind != pl.Boolean:
            raise WrongValue(f"filter: the rule {check.label} must be true or false for each row", "compare it with something")


def _reasons(frame: pl.DataFrame, found: pl.DataFrame, checks: Sequence[rules.Check]) -> NDArray[np.int64]:
    """Return for each row the first check that leaves it out, or -1; `found` has a column of flags for each check."""
    reasons = np.full(len(frame), -1, np.int64)
    for place, check in enumerate(checks):
        flags, alive = found.to_series(place), reasons < 0
        verdict = flags.to_numpy() if check.decide is None else check.decide(frame, flags, alive)
        reasons[alive & verdict] = place
    return reasons
