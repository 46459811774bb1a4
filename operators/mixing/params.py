"""What a spec says of mix, and what follows from it for the inputs' columns. Reads no row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from caiflow.engine.operator import ColumnName, Params, RowsRef, Strict
from caiflow.engine.rows.columns import Columns, answer_column

Make = Literal["messages", "preference", "prompts"]
TAG = "source_step"
LEAST, MOST = 1e-9, 1e9
"""Bounds of a ratio: no input has more rows."""


class MixInput(Strict):
    """How one input takes part."""

    ratio: float | None = Field(default=None, ge=LEAST, le=MOST)
    """Its share against the other inputs' ratios."""
    rows: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """Its number of rows, whatever the others have, or `all` of them."""
    answer: ColumnName | None = None
    """Column with the answer to be learned; by default the first of revision, response, chosen that it has, else `messages`."""


class MixParams(Params):
    """Fields of `mix`."""

    trial: ClassVar[Mapping[str, Any]] = {"on_short": "take_all"}

    inputs: dict[RowsRef, Annotated[float, Field(ge=LEAST, le=MOST)] | MixInput] = Field(min_length=1)
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
    tag: str | None = Field(default=TAG, min_length=1)
    """Column that tells the step each row is from, instead of a tag that an input has from a mixture; null writes none."""
    held_out: tuple[RowsRef, ...] = ()
    """Test steps whose prompts must not be in the mixture, neither whole nor as the opening of longer ones.

    Case, spaces and system turns don't count.
    """
    on_leak: Literal["fail", "drop"] = "fail"
    """What becomes of a row whose prompt is held out: fail, or leave it out and count it."""

    def form(self, inputs: Mapping[str, Columns]) -> Make:
        """Return the form of the mixture, `auto` settled by the inputs' columns."""
        if self.make != "auto":
            return self.make
        if all("chosen" in columns.types and "rejected" in columns.types for columns in inputs.values()):
            return "preference"
        learned = all(self.answer_of(name, columns) or "messages" in columns.types for name, columns in inputs.items())
        return "messages" if learned else "prompts"

    def answer_of(self, name: str, columns: Columns) -> str | None:
        """Return the column an input's answers are in; None where its `messages` are taken as they are."""
        return self.answer_given(name) or answer_column(columns.types)

    def ratio(self, name: str) -> float | None:
        """Return an input's ratio; None where it takes part by number, or isn't an input."""
        share = self.inputs.get(name)
        return share.ratio if isinstance(share, MixInput) else share

    def wanted(self, fit: Mapping[str, int]) -> dict[str, int]:
        """Return how many rows each input is asked for, given how many of its rows are fit."""
        ratios = {name: ratio for name in fit if (ratio := self.ratio(name)) is not None}
        anchor = self.anchor or min(ratios, key=lambda name: fit[name] / ratios[name], default=None)
        found = {}
        for name, share in self.inputs.items():
            rows = share.rows if isinstance(share, MixInput) else None
            if name in ratios and anchor is not None:
                found[name] = max(1, round(fit[anchor] * ratios[name] / ratios[anchor]))
            else:
                found[name] = rows if isinstance(rows, int) else fit[name]
        return found

    def tags(self) -> Mapping[str, str]:
        """Return what stands for each input: its step's name, without the arm where that's clear: arms share equal mixtures."""
        bases = [name.partition("@")[0] for name in self.inputs]
        return {name: base if bases.count(base) == 1 else name for name, base in zip(self.inputs, bases, strict=True)}

    def answer_given(self, name: str) -> str | None:
        """Return the column that an input names for its answers."""
        share = self.inputs[name]
        return share.answer if isinstance(share, MixInput) else None
