"""What a spec says of filter: the rules and their settings. Looks at no row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from caiflow.engine.operator import (
    SPEED,
    ColumnName,
    ExpressionText,
    ModelRef,
    Params,
    RowsRef,
    Strict,
)
from caiflow.operators.measures.texts import COPIED

ROLES = (
    "Human",
    "User",
    "Assistant",
    "AI",
    "System",
    "Critique",
    "CritiqueRequest",
    "Critique Request",
    "Revision",
    "RevisionRequest",
    "Revision Request",
)
"""Names that begin a line only where a model writes the frame of its prompt instead of an answer."""
RuleName = Literal[
    "few_shot_leak", "unchanged", "copies", "common_prefix", "duplicates", "role_prefixes", "repetition", "preamble"
]


class Answer(Strict):
    """A rule about one column of text."""

    column: ColumnName | None = None
    """The column looked at; by default the first of revision, response, chosen that the input has."""


class Compared(Answer):
    """A rule about a column and another one."""

    other: ColumnName = "response"
    """The column it is compared with."""


class FewShotLeak(Answer):
    """Answers copied from few-shot examples."""

    n: int = Field(default=8, ge=2, le=50)
    """Words in a row that an answer must share with an example, and not with its own prompt, to be left out."""


class Copies(Answer):
    """Answers that are copies of something else in their row."""

    of: Literal["critique", "prompt", "examples", "response"] = "critique"
    """What they are held against: the row's critique, a turn of its prompt, the few-shot examples, or its response."""
    share: float = Field(default=COPIED, gt=0, le=1)
    """Least share (0 to 1) of an answer's words, in runs of four or more, that the other text has as well."""


class CommonPrefix(Compared):
    """Answers that begin as the other column does."""

    chars: int = Field(default=20, ge=1)
    """Characters that must be the same, spaces before them aside."""


class Length(Strict):
    """Texts that are too short or too long."""

    column: ColumnName
    """The column measured; null counts as empty."""
    min: int = Field(default=0, ge=0)
    """Least length, in `unit`."""
    max: int | None = Field(default=None, ge=0)
    """Greatest length, in `unit`; by default any."""
    unit: Literal["characters", "tokens"] = "characters"
    """What is counted; tokens need `model`."""
    model: ModelRef | None = None
    """The model whose tokenizer counts, where the unit is tokens."""


class Duplicates(Strict):
    """Rows that repeat an earlier one."""

    columns: tuple[ColumnName, ...] = ()
    """Columns that must all be equal; by default prompt and answer."""


class RolePrefixes(Answer):
    """Answers in which a line begins with a role's name and a colon."""

    roles: tuple[str, ...] = Field(default=ROLES, min_length=1)
    """The names looked for, in any case."""


class Repetition(Answer):
    """Answers that go in circles."""

    n: int = Field(default=4, ge=1, le=50)
    """Words (or single signs, such as an emoji) in a row that count as one thing said."""
    max: float = Field(default=0.3, ge=0, lt=1)
    """Greatest share of them that may have been said before, 0 to 1."""


class Preamble(Answer):
    """Answers that begin by announcing a revision ("Here is the revised response:")."""

    phrases: tuple[str, ...] = ()
    """Further beginnings to leave out, in any case."""


class Rule(Strict):
    """One rule with its settings."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    few_shot_leak: FewShotLeak | None = None
    """Answers that share words in a row with a few-shot example they were shown."""
    unchanged: Compared | None = None
    """Answers equal to the response they should have changed."""
    copies: Copies | None = None
    """Answers copied from their critique, their prompt, an example or the response."""
    common_prefix: CommonPrefix | None = None
    """Answers that begin as the response did."""
    length: Length | None = None
    """Texts outside a range of characters or tokens."""
    duplicates: Duplicates | None = None
    """Rows equal to an earlier one."""
    role_prefixes: RolePrefixes | None = None
    """Answers with lines such as `Assistant: ...`."""
    repetition: Repetition | None = None
    """Answers that say the same again and again."""
    preamble: Preamble | None = None
    """Answers that announce themselves."""
    where: ExpressionText | None = None
    """Rows for which an expression over the columns is true, such as `words(response) < 5 or turns(prompt) > 9`.

    Columns by name, numbers, texts, `and`, `or`, `not`, comparisons, `in [..]`, `is None`, `+ - * / %`; of texts words,
    length, lower, strip, contains(a, b), startswith, endswith; of conversations turns and last (the last text); abs, min, max.
    A comparison with a missing value (or NaN) is false, but for those with None.
    """

    @model_validator(mode="after")
    def _one(self) -> Rule:
        if len(self.model_fields_set) != 1 or getattr(self, next(iter(self.model_fields_set))) is None:
            raise ValueError("a rule is one name with its settings")
        return self

    @property
    def kind(self) -> str:
        """The rule's name."""
        return next(iter(self.model_fields_set))


class UntilParams(Strict):
    """When enough rows are there."""

    accepted: int = Field(ge=1)
    """Rows that no rule finds fault with and that are kept: the first so many in the order of the input."""
    at_most: int | None = Field(default=None, ge=1)
    """Rows that the steps before it begin with at the most; by default all that their input has."""


class FilterParams(Params):
    """Fields of `filter`."""

    input: RowsRef
    """The step whose rows are read."""
    drop: tuple[RuleName | Rule, ...] = ()
    """Rules in the order they speak: a name, or a name with settings. The first that finds fault with a row is its reason."""
    until: UntilParams | None = Field(default=None, json_schema_extra=SPEED)
    """End the steps that lead up to this one, row by row, once enough rows passed, such as `{accepted: 5000, at_most: 20000}`.

    All of them end behind the same row of their input, whatever the order in which rows finish. What was asked about rows
    behind it before that was known stays in the ledger: with a larger `accepted` only what isn't there yet is asked.
    """


def labels(kinds: Sequence[str]) -> list[str]:
    """Return the rules' names, numbered from the second of a kind on."""
    counters: dict[str, Iterator[int]] = {}
    numbers = [next(counters.setdefault(kind, count(1))) for kind in kinds]
    return [kind if number == 1 else f"{kind}_{number}" for kind, number in zip(kinds, numbers, strict=True)]
