"""`mix`: rows of several steps in one table, by ratio or number, drawn and shuffled by the seed, held apart from test prompts.

Owns what the parameters make of the inputs' columns; the drawing and writing is in `mixing.mixer`. Never takes the head of
a table where a sample is meant, and never trains.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import Finding
from caiflow.engine.health import Measure
from caiflow.engine.operator import ANSWERS, Expected, Job, TableOperator
from caiflow.engine.rows.columns import NO_ANSWERS, Columns, ColumnType, Gap, Turns
from caiflow.operators.mixing.params import TAG, MixInput, MixParams

if TYPE_CHECKING:
    from caiflow.engine.rows.folder import RowsWriter


class Mix(TableOperator[MixParams]):
    """Mix rows of several steps by ratio or number, drawn by the seed, with a leak check against test prompts."""

    name = "mix"
    version = 3
    params_type = MixParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return what the chosen form and the leak check look at."""
        found = {name: self._needed(name) for name in self.params.inputs}
        return {**found, **{name: ["prompt"] for name in self.params.held_out if name not in found}}

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the columns of all inputs (those of two types aside), the ones made here, and the tag."""
        mixed = {name: inputs[name] for name in self.params.inputs}
        made = self.params.form(mixed)
        types = _types(list(mixed.values()))
        if made == "messages":
            types["messages"] = "messages"
        if made == "preference":
            types["p_chosen"] = "number"
        if self.params.tag:
            types[self.params.tag] = "text"
        opened = any(columns.open for columns in mixed.values())
        return Columns(types, opened, self._gaps(mixed, types), self._turns(mixed, made), self._outdone(mixed, made))

    def check(self) -> Iterator[Finding]:
        """Yield inputs that say both or neither of ratio and rows, and anchors and held-out steps that aren't possible."""
        for name, share in self.params.inputs.items():
            if isinstance(share, MixInput) and (share.ratio is None) == (share.rows is None):
                yield Finding(("inputs", name), "an input takes part by `ratio` or by `rows`", "give one of the two")
        anchor = self.params.anchor
        if anchor is not None and self.params.ratio(anchor) is None:
            given = ", ".join(name for name in self.params.inputs if self.params.ratio(name) is not None)
            yield Finding(("anchor",), f"the anchor must be an input with a ratio, got {anchor!r}", f"name one of {given}")
        for place, name in enumerate(self.params.held_out):
            if name in self.params.inputs:
                yield Finding(
                    ("held_out", place), f"{name!r} is held out and an input at once", "remove it from one of the two"
                )

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield inputs of which no row is fit, and a tag that would take the place of a column."""
        tag, form = self.params.tag, self.params.form({name: inputs[name] for name in self.params.inputs})
        for name in self.params.inputs:
            empty = [column for column in self._filled(name, inputs) if inputs[name].gaps.get(column) == "all"]
            if empty:
                yield Finding(("inputs", name), f"no row of `{name}` has anything in `{empty[0]}`", NO_ANSWERS)
            if form == "messages" and (taken := self.params.answer_of(name, inputs[name])) in inputs[name].outdone:
                told = f"`{taken}` of `{name}` isn't the answer that its `messages` end with, which was named"
                yield Finding(("inputs", name), told, "name the column under `answer` here, too")
        owners = [name for name in self.params.inputs if tag in inputs[name].types]
        made = {"messages": ("messages",), "preference": ("chosen", "rejected", "p_chosen"), "prompts": ()}
        if tag in ("uid", "prompt", *made[form]):
            yield Finding(("tag",), f"`{tag}` is a column of the mixture itself", "give the tag another name")
        elif owners and tag != TAG:
            yield Finding(("tag",), f"`{owners[0]}` has a column `{tag}` already", "give the tag another name")

    def expects(self, inputs: Mapping[str, Expected]) -> Expected | None:
        """Return the rows of the mixture that is made where all rows of the inputs are fit."""
        if not self.params.inputs.keys() <= inputs.keys():
            return None
        rows = self.params.wanted({name: inputs[name].rows for name in self.params.inputs})
        most = {name: inputs[name].rows for name in rows} if self.params.on_short == "take_all" else rows
        return Expected(sum(min(number, most[name]) for name, number in rows.items()))

    def identity(self) -> Mapping[str, Any]:
        """Return the seed, and the step names where they become values of a column."""
        return {"seed": self.context.seed, "tags": list(self.params.tags().values()) if self.params.tag else None}

    def table(self, job: Job, out: RowsWriter) -> None:
        """Look at what each input has, draw, and write the mixture in its order; rows unfit for it are kept beside.

        Raises:
            ValueError: an input has too few rows, nothing is left, or a held-out prompt is in an input.
        """
        from caiflow.operators.mixing.mixer import Mixer

        types = self.columns({name: Columns(job.inputs[name].columns) for name in self.params.inputs}).types
        Mixer(self.params, types, self.context.seed, job).write(out)

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with the mixture: rows that repeat, inputs that fall short of their share."""
        repeated = Measure(
            "repeated", "<= 0.5", "rows of the input that ran out first that are there before", "they count more than once",
            "load more of it, or lower its share", figure=_repeated,
        )  # fmt: skip
        short = Measure(
            "short", "<= 0.1", "part of its share that an input lacks", "the mixture isn't the one that was asked for",
            "load more of it, or lower its share", figure=self._short,
        )  # fmt: skip
        return [repeated, short]

    def _short(self, metrics: Mapping[str, Any]) -> float | None:
        """Return the greatest part of its ratio or number that an input has fewer rows than."""
        rows = {name: found["rows"] for name, found in metrics["mixture"].items()}
        shares = {name: rows[name] / ratio for name in rows if (ratio := self.params.ratio(name))}
        most = max(shares.values(), default=0.0)
        given = {name: share.rows for name, share in self.params.inputs.items() if isinstance(share, MixInput)}
        lacks = [1 - share / most for share in shares.values() if most]
        lacks += [1 - rows[name] / number for name, number in given.items() if isinstance(number, int)]
        return max(lacks, default=None)

    def _filled(self, name: str, inputs: Mapping[str, Columns]) -> Sequence[str]:
        """Return the columns that a row of an input must have something in to be fit, as far as the columns are known."""
        made = self.params.form({other: inputs[other] for other in self.params.inputs})
        answer = self.params.answer_of(name, inputs[name])
        found = {"messages": ("prompt", answer) if answer else ("messages",), "preference": ("prompt", "chosen", "rejected")}
        return found.get(made, ("prompt",))

    def _gaps(self, inputs: Mapping[str, Columns], types: Collection[str]) -> dict[str, Gap]:
        """Return the columns that rows of some inputs, or of all, have nothing in."""
        made = {"messages": ["messages"], "preference": ["p_chosen"], "prompts": []}[self.params.form(inputs)]
        found: dict[str, Gap] = {}
        for column in set(types) - {"uid", self.params.tag, *made}:
            gaps = [self._gap(name, inputs, column) for name in inputs]
            if any(gaps):
                found[column] = "all" if set(gaps) == {"all"} else "some"
        return found

    def _turns(self, inputs: Mapping[str, Columns], made: str) -> dict[str, Turns]:
        """Return what is known of the conversations of the mixture: those of all inputs, some of whose rows it has."""
        found: dict[str, list[Turns | None]] = {"prompt": [], "messages": []}
        for name, columns in inputs.items():
            learnt = "prompt" if made == "messages" and self.params.answer_of(name, columns) else "messages"
            found["prompt"].append(columns.turns.get("prompt"))
            found["messages"].append(columns.turns.get(learnt))
        return {
            name: reduce(Turns.__add__, known).sifted()
            for name, turns in found.items()
            if len(known := [one for one in turns if one is not None]) == len(inputs)
        }

    def _outdone(self, inputs: Mapping[str, Columns], made: str) -> frozenset[str]:
        """Return the columns of answers that an input has beside the one that is named for it."""
        if made != "messages":
            return frozenset().union(*(columns.outdone for columns in inputs.values()))
        named = {name: answer for name in inputs if (answer := self.params.answer_given(name))}
        return frozenset(
            other for name, answer in named.items() for other in ANSWERS if other in inputs[name].types and other != answer
        )

    def _gap(self, name: str, inputs: Mapping[str, Columns], column: str) -> Gap | None:
        """Return whether the rows that are taken from an input are known to have nothing in a column."""
        if column in self._filled(name, inputs):
            return None
        return inputs[name].gaps.get(column) if column in inputs[name] else "all"

    def _needed(self, name: str) -> list[str]:
        answer = self.params.answer_given(name)
        if self.params.make == "preference":
            return ["prompt", "chosen", "rejected"]
        if self.params.held_out or answer or self.params.make == "prompts":
            return ["prompt", *([answer] if answer else [])]
        return ["prompt|messages", "|".join((*ANSWERS, "messages"))] if self.params.make == "messages" else ["prompt|messages"]


def _repeated(metrics: Mapping[str, Any]) -> float | None:
    """Return the greatest share of an input's rows in the mixture that were drawn before."""
    return max((1 - min(1.0, m["available"] / m["rows"]) for m in metrics["mixture"].values() if m["rows"]), default=None)


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
