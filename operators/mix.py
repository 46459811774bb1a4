"""`mix`: rows of several steps in one table, by ratio or number, drawn and shuffled by the seed, held apart from test prompts.

Owns the parameters, and what they make of the inputs' columns; the drawing and writing is in `mixing`. Never takes the head of
a table where a sample is meant, and never trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from caiflow.engine.operator import ANSWERS, ColumnName, Job, Params, RowsRef, Strict, TableOperator, answer_column
from caiflow.engine.rows.columns import Columns, ColumnType

if TYPE_CHECKING:
    from caiflow.engine.rows.folder import RowsWriter

Make = Literal["messages", "preference", "prompts"]
TAG = "source_step"


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
    tag: str | None = Field(default=TAG, min_length=1)
    """Column that tells the step each row is from, instead of a tag that an input has from a mixture; null writes none."""
    held_out: tuple[RowsRef, ...] = ()
    """Test steps whose prompts must not be in the mixture, neither whole nor as the opening of longer ones.

    Case, spaces and system turns don't count.
    """
    on_leak: Literal["fail", "drop"] = "fail"
    """What becomes of a row whose prompt is held out: fail, or leave it out and count it."""


class Mix(TableOperator[MixParams]):
    """Mix rows of several steps by ratio or number, drawn by the seed, with a leak check against test prompts."""

    name = "mix"
    version = 2
    params_type = MixParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return what the chosen form and the leak check look at."""
        found = {name: self._needed(name) for name in self.params.inputs}
        return {**found, **{name: ["prompt"] for name in self.params.held_out if name not in found}}

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the columns of all inputs (those of two types aside), the ones made here, and the tag."""
        mixed = {name: inputs[name] for name in self.params.inputs}
        made = self.make(mixed)
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
        if anchor is not None and self.ratio(anchor) is None:
            given = ", ".join(name for name in self.params.inputs if self.ratio(name) is not None)
            yield ("anchor",), f"the anchor must be an input with a ratio, got {anchor!r}", f"name one of {given}"
        for place, name in enumerate(self.params.held_out):
            if name in self.params.inputs:
                yield ("held_out", place), f"{name!r} is held out and an input at once", "remove it from one of the two"

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """Yield a tag that would take the place of a column."""
        tag = self.params.tag
        owners = [name for name in self.params.inputs if tag in inputs[name].types]
        made = {"messages": ("messages",), "preference": ("chosen", "rejected", "p_chosen"), "prompts": ()}
        if tag in ("uid", "prompt", *made[self.make({name: inputs[name] for name in self.params.inputs})]):
            yield ("tag",), f"`{tag}` is a column of the mixture itself", "give the tag another name"
        elif owners and tag != TAG:
            yield ("tag",), f"`{owners[0]}` has a column `{tag}` already", "give the tag another name"

    def identity(self) -> Mapping[str, Any]:
        """Return the seed, and the step names where they become values of a column."""
        return {"seed": self.context.seed, "tags": list(self.tags.values()) if self.params.tag else None}

    @cached_property
    def tags(self) -> Mapping[str, str]:
        """What stands for each input: its step's name, without the arm where that's clear: arms share equal mixtures."""
        bases = [name.partition("@")[0] for name in self.params.inputs]
        return {name: base if bases.count(base) == 1 else name for name, base in zip(self.params.inputs, bases, strict=True)}

    def table(self, job: Job, out: RowsWriter) -> None:
        """Look at what each input has, draw, and write the mixture in its order; rows unfit for it are kept beside.

        Raises:
            ValueError: an input has too few rows, nothing is left, or a held-out prompt is in an input.
        """
        from caiflow.operators.mixing.mixer import Mixer

        Mixer(self, job).write(out)

    def make(self, inputs: Mapping[str, Columns]) -> Make:
        """Return the form of the mixture, `auto` settled by the inputs' columns."""
        if self.params.make != "auto":
            return self.params.make
        if all("chosen" in columns.types and "rejected" in columns.types for columns in inputs.values()):
            return "preference"
        learned = all(self.answer(name, columns) or "messages" in columns.types for name, columns in inputs.items())
        return "messages" if learned else "prompts"

    def answer(self, name: str, columns: Columns) -> str | None:
        """Return the column an input's answers are in; None where its `messages` are taken as they are."""
        return self._given_answer(name) or answer_column(columns.types)

    def ratio(self, name: str) -> float | None:
        """Return an input's ratio; None where it takes part by number, or isn't an input."""
        share = self.params.inputs.get(name)
        return share.ratio if isinstance(share, MixInput) else share

    def _needed(self, name: str) -> list[str]:
        answer = self._given_answer(name)
        if self.params.make == "preference":
            return ["prompt", "chosen", "rejected"]
        if self.params.held_out or answer or self.params.make == "prompts":
            return ["prompt", *([answer] if answer else [])]
        return ["prompt|messages", "|".join((*ANSWERS, "messages"))] if self.params.make == "messages" else ["prompt|messages"]

    def _given_answer(self, name: str) -> str | None:
        share = self.params.inputs[name]
        return share.answer if isinstance(share, MixInput) else None


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
