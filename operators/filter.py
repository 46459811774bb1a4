"""`filter`: leaves out rows that one of its rules finds fault with, keeps them beside with the reason, and counts each rule's.

Owns the rules' parameters and the order in which they speak. The rules themselves are in `caiflow.operators.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from caiflow.engine.operator import ColumnName, Columns, ExpressionText, Job, ModelRef, Params, RowsRef, Strict, TableOperator
from caiflow.operators import rules
from caiflow.operators.expression import ExpressionError, parse

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from caiflow.engine.rows import RowsWriter

ANSWERS = ("revision", "response", "chosen")
"""The columns an answer may be in; a rule without `column` looks at the first of them that the input has."""
_BATCH = 16_384
_FLAG = "__flag_"

RuleName = Literal["few_shot_leak", "unchanged", "common_prefix", "duplicates", "role_prefixes", "repetition", "preamble"]


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

    roles: tuple[str, ...] = Field(default=rules.ROLES, min_length=1)
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


class FilterParams(Params):
    """Fields of `filter`."""

    input: RowsRef
    """The step whose rows are read."""
    drop: tuple[RuleName | Rule, ...] = Field(min_length=1)
    """Rules in the order they speak: a name, or a name with settings. The first that finds fault with a row is its reason."""


class Filter(TableOperator[FilterParams]):
    """Leave out rows by rules, and keep them beside with the reason."""

    name = "filter"
    params_type = FilterParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns that the rules look at."""
        found: dict[str, None] = {}
        for rule in self._rules():
            found |= dict.fromkeys(_needed(rule))
        return {self.params.input: list(found)}

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the input's columns."""
        (given,) = inputs.values()
        return given

    def check(self) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """Yield what is wrong with expressions, ranges and missing helpers of rules."""
        for place, rule in enumerate(self._rules()):
            at = ("drop", place) if isinstance(self.params.drop[place], str) else ("drop", place, rule.kind)
            for path, message, hint in self._check_rule(rule):
                yield (*at, *path), message, hint

    def _check_rule(self, rule: Rule) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        if rule.where is not None:
            try:
                parse(rule.where)
            except ExpressionError as error:
                yield (), str(error), "write an expression such as `words(response) < 5 and p_chosen > 0.9`"
        if rule.few_shot_leak and self.context.constitution is None:
            yield (), "few_shot_leak needs the constitution's few-shot examples", "name one under `constitution:`"
        size = rule.length
        if size and size.max is not None and size.max < size.min:
            yield ("max",), f"max must be at least min ({size.min}), got {size.max}", "raise it"
        if size and size.max is None and not size.min:
            yield (), "a length without min and max keeps every row", "give one of them"
        if size and (size.unit == "tokens") != (size.model is not None):
            yield ("unit",), "tokens are counted by a model's tokenizer", "give `unit: tokens` and `model:` together"

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """Yield expressions that do with a column what its type doesn't allow."""
        for place, rule in enumerate(self._rules()):
            try:
                expression = parse(rule.where) if rule.where is not None else None
            except ExpressionError:
                continue  # `check` says so
            try:
                if expression is not None:
                    expression.check_types(inputs[self.params.input].types)
            except ExpressionError as error:
                message, _, hint = str(error).partition("; ")
                yield ("drop", place, "where"), message, hint

    def identity(self) -> Mapping[str, Any]:
        """Return the texts of the few-shot examples where a rule goes by them."""
        leak = any(rule.kind == "few_shot_leak" for rule in self._rules())
        return {"few_shot": {name: list(texts) for name, texts in self._examples().items()}} if leak else {}

    def table(self, job: Job, out: RowsWriter) -> None:
        """Stream the rows through all rules at once; the first rule in order that flags a row is its reason.

        Raises:
            ValueError: an expression or column doesn't fit the rows.
        """
        import numpy as np
        import polars as pl

        rows = job.inputs[self.params.input]
        schema = rows.scan().collect_schema()
        checks = self._checks(dict(schema), job)
        dropped = np.zeros(len(checks), np.int64)
        flags = [check.flag.alias(f"{_FLAG}{place}") for place, check in enumerate(checks)]
        labels = pl.Series([check.label for check in checks])
        try:
            for frame in rows.scan().with_columns(flags).collect_batches(chunk_size=_BATCH, maintain_order=True):
                _refuse_values(frame, checks)
                reasons = _reasons(frame, checks)
                frame = frame.drop([f"{_FLAG}{place}" for place in range(len(checks))])
                alive = reasons < 0
                out.write(frame if alive.all() else frame.filter(pl.Series(alive)))
                if not alive.all():
                    gone = reasons[~alive]
                    out.drop(frame.filter(pl.Series(~alive)), labels.gather(gone))
                    dropped += np.bincount(gone, minlength=len(checks))
                if job.log:
                    job.log(done=out.num_rows + out.num_dropped)
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"filter: a rule doesn't fit the columns of {self.params.input}: {error}") from error
        out.metrics["dropped"] = {check.label: int(number) for check, number in zip(checks, dropped, strict=True)}

    def _rules(self) -> list[Rule]:
        settings: dict[str, type[Strict]] = {
            "few_shot_leak": FewShotLeak,
            "unchanged": Compared,
            "common_prefix": CommonPrefix,
            "duplicates": Duplicates,
            "role_prefixes": RolePrefixes,
            "repetition": Repetition,
            "preamble": Preamble,
        }
        return [_plain(rule, settings[rule]) if isinstance(rule, str) else rule for rule in self.params.drop]

    def _examples(self) -> Mapping[str, Sequence[str]]:
        """Return the words of every few-shot example, by the name a row remembers it by."""
        from caiflow.engine.few_shot import example_id

        return {
            example_id(example): [
                *(turn["content"] for turn in example.prompt),
                example.response,
                example.critique,
                example.revision,
            ]
            for example in self.constitution.few_shot_critique
        }

    def _checks(self, schema: Mapping[str, pl.DataType], job: Job) -> list[rules.Check]:
        labels = _labels([rule.kind for rule in self._rules()])
        return [self._made(rule, label, schema, job) for rule, label in zip(self._rules(), labels, strict=True)]

    def _made(self, rule: Rule, label: str, schema: Mapping[str, pl.DataType], job: Job) -> rules.Check:
        """Return one rule made ready for rows with these columns."""
        fields: Any = getattr(rule, rule.kind)
        if rule.where is not None:
            return rules.Check(label, parse(rule.where).polars())
        if isinstance(fields, Duplicates):
            answer = [name for name in ANSWERS if name in schema][:1]
            default = [name for name in ("prompt", *answer) if name in schema]
            return rules.duplicates(label, fields.columns or default, schema)
        if isinstance(fields, Length):
            return self._length(fields, label, job)
        column = fields.column or next((name for name in ANSWERS if name in schema), ANSWERS[0])
        made: Mapping[str, Callable[[], rules.Check]] = {
            "few_shot_leak": lambda: rules.few_shot_leak(label, [column], self._examples(), fields.n, schema),
            "unchanged": lambda: rules.unchanged(label, column, fields.other),
            "common_prefix": lambda: rules.common_prefix(label, column, fields.other, fields.chars),
            "role_prefixes": lambda: rules.role_prefixes(label, column, fields.roles),
            "repetition": lambda: rules.repetition(label, column, fields.n, fields.max),
            "preamble": lambda: rules.preamble(label, column, fields.phrases),
        }
        return made[rule.kind]()

    def _length(self, fields: Length, label: str, job: Job) -> rules.Check:
        if fields.unit == "characters":
            return rules.length_in_characters(label, fields.column, fields.min, fields.max)
        from caiflow.engine.llm.load import load_tokenizer

        tokenizer = load_tokenizer(job.models[fields.model or ""])
        return rules.length_in_tokens(label, fields.column, fields.min, fields.max, tokenizer)


def _plain(name: RuleName, settings: type[Strict]) -> Rule:
    """Return a rule with nothing set, which needs no validation."""
    given: dict[str, Any] = {name: settings.model_construct()}
    return Rule.model_construct({name}, **given)


def _needed(rule: Rule) -> Sequence[str]:
    fields: Any = getattr(rule, rule.kind)
    if rule.where is not None:
        try:
            return parse(rule.where).columns
        except ExpressionError:
            return ()
    if isinstance(fields, Duplicates):
        return fields.columns or ("prompt",)
    found = [fields.column or "|".join(ANSWERS)]
    return [*found, fields.other] if isinstance(fields, Compared) else found


def _labels(kinds: Sequence[str]) -> list[str]:
    """Return the rules' names, numbered from the second of a kind on."""
    counters: dict[str, Iterator[int]] = {}
    numbers = [next(counters.setdefault(kind, count(1))) for kind in kinds]
    return [kind if number == 1 else f"{kind}_{number}" for kind, number in zip(kinds, numbers, strict=True)]


def _refuse_values(frame: pl.DataFrame, checks: Sequence[rules.Check]) -> None:
    """Raise ValueError where a rule without a decision of its own says something other than true or false."""
    import polars as pl

    for place, check in enumerate(checks):
        if check.decide is None and frame.schema[f"{_FLAG}{place}"] != pl.Boolean:
            raise ValueError(f"filter: the rule {check.label} must be true or false for each row; compare it with something")


def _reasons(frame: pl.DataFrame, checks: Sequence[rules.Check]) -> NDArray[np.int64]:
    """Return for each row the first check that leaves it out, or -1."""
    import numpy as np

    reasons = np.full(len(frame), -1, np.int64)
    for place, check in enumerate(checks):
        flags, alive = frame[f"{_FLAG}{place}"], reasons < 0
        verdict = flags.to_numpy() if check.decide is None else check.decide(frame, flags, alive)
        reasons[alive & verdict] = place
    return reasons
