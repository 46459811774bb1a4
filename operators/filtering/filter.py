"""`filter`: leaves out rows that one of its rules finds fault with, keeps them beside with the reason, and counts each rule's.

Owns what the rules look at and need. How rows are put through them is in `filtering.sieve`, the rules' settings are in
`filtering.params`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from caiflow.engine.errors import Finding, finding
from caiflow.engine.health import Measure
from caiflow.engine.operator import (
    ANSWERS,
    Expected,
    Job,
    Passing,
    Strict,
    TableOperator,
    Until,
)
from caiflow.engine.rows.columns import Columns, answer_column
from caiflow.operators.filtering.expression import ExpressionError, parse
from caiflow.operators.filtering.params import (
    CommonPrefix,
    Compared,
    Copies,
    Duplicates,
    FewShotLeak,
    FilterParams,
    Preamble,
    Repetition,
    RolePrefixes,
    Rule,
    RuleName,
    labels,
)

if TYPE_CHECKING:
    from caiflow.engine.rows.folder import RowsWriter


class Filter(TableOperator[FilterParams]):
    """Leave out rows by rules, and keep them beside with the reason."""

    name = "filter"
    version = 4
    raised_for: ClassVar[Mapping[int, str]] = {3: "each character of a script without spaces counts as a word"}
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
        return given.sifted()

    def expects(self, inputs: Mapping[str, Expected]) -> Expected | None:
        """Return at most the rows of the input."""
        given, until = inputs.get(self.params.input), self.params.until
        return given and given._replace(rows=min(given.rows, until.accepted) if until else given.rows, exact=False)

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong with expressions, ranges and missing helpers of rules, and with how many rows are wanted."""
        until = self.params.until
        if not self.params.drop and until is None:
            yield Finding(("drop",), "no rule: every row would pass", "write rules under `drop`")
        if until and until.at_most is not None and until.at_most < until.accepted:
            told = f"at_most must be at least accepted ({until.accepted}), got {until.at_most}"
            yield Finding(("until", "at_most"), told, "raise it: some rows won't pass")
        for place, rule in enumerate(self._rules()):
            at = ("drop", place) if isinstance(self.params.drop[place], str) else ("drop", place, rule.kind)
            yield from (wrong.below(*at) for wrong in self._check_rule(rule))

    def _check_rule(self, rule: Rule) -> Iterator[Finding]:
        if rule.where is not None:
            try:
                parse(rule.where)
            except ExpressionError as error:
                wrong = finding(error)
                hint = wrong.hint or "write an expression such as `words(response) < 5 and p_chosen > 0.9`"
                yield wrong._replace(hint=hint)
        if _by_examples(rule) and self.context.constitution is None:
            yield Finding((), f"{rule.kind} needs the constitution's few-shot examples", "name one under `constitution:`")
        size = rule.length
        if size and size.max is not None and size.max < size.min:
            yield Finding(("max",), f"max must be at least min ({size.min}), got {size.max}", "raise it")
        if size and size.max is None and not size.min:
            yield Finding((), "a length without min and max keeps every row", "give one of them")
        if size and (size.unit == "tokens") != (size.model is not None):
            yield Finding(("unit",), "tokens are counted by a model's tokenizer", "give `unit: tokens` and `model:` together")

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield expressions and rules that do with a column what its type doesn't allow, or compare one with itself."""
        columns = inputs[self.params.input]
        for place, rule in enumerate(self._rules()):
            named = not isinstance(self.params.drop[place], str)
            for wrong in _wrong_columns(rule, columns):
                yield wrong.below("drop", place) if named else wrong._replace(path=("drop", place))

    def identity(self) -> Mapping[str, Any]:
        """Return the texts of the few-shot examples where a rule goes by them."""
        leak, until = any(map(_by_examples, self._rules())), self.params.until
        examples = {"few_shot": {name: list(texts) for name, texts in self._examples().items()}} if leak else {}
        return {**examples, **({"accepted": until.accepted} if until else {})}

    def table(self, job: Job, out: RowsWriter) -> None:
        """Stream the rows through all rules at once; the first rule in order that flags a row is its reason.

        Raises:
            ValueError: an expression or column doesn't fit the rows.
        """
        from caiflow.operators.filtering.sieve import Sieve

        name, until = self.params.input, self.params.until
        Sieve(self._rules(), self._examples, job).pour(name, job.inputs[name], out, until.accepted if until else None)

    def until(self) -> Until | None:
        """Return how many rows are wanted, of how many."""
        until = self.params.until
        return Until(until.accepted, until.at_most) if until else None

    def passing(self, job: Job) -> Passing:
        """Return what says which rows no rule finds fault with."""
        from caiflow.operators.filtering.sieve import Sieve

        return Sieve(self._rules(), self._examples, job).passing()

    def measures(self) -> Sequence[Measure]:
        """Return the share of rows that each rule leaves out, and of those wanted the share that isn't there."""
        rules = [_dropped_by(label) for label in labels([rule.kind for rule in self._rules()])]
        return [*rules, *([_LACKING] if self.params.until else [])]

    def _rules(self) -> list[Rule]:
        settings: dict[str, type[Strict]] = {
            "few_shot_leak": FewShotLeak,
            "unchanged": Compared,
            "copies": Copies,
            "common_prefix": CommonPrefix,
            "duplicates": Duplicates,
            "role_prefixes": RolePrefixes,
            "repetition": Repetition,
            "preamble": Preamble,
        }
        return [_plain(rule, settings[rule]) if isinstance(rule, str) else rule for rule in self.params.drop]

    def _examples(self) -> Mapping[str, Sequence[str]]:
        """Return the words of every few-shot example, by the name a row remembers it by."""
        from caiflow.engine.constitution.few_shot import example_id

        return {
            example_id(example): [
                *(turn["content"] for turn in example.prompt),
                example.response,
                example.critique,
                example.revision,
            ]
            for example in self.constitution.few_shot_critique
        }


def _by_examples(rule: Rule) -> bool:
    """Return whether a rule goes by the constitution's few-shot examples."""
    return rule.few_shot_leak is not None or (rule.copies is not None and rule.copies.of == "examples")


def _dropped_by(label: str) -> Measure:
    def share(metrics: Mapping[str, Any]) -> float | None:
        return metrics["dropped"][label] / metrics["rows_in"] if metrics.get("rows_in") else None

    return Measure(
        f"dropped_{label}", "<= 0.5", f"rows left out by `{label}`", "more were paid for than are used",
        "look at the notes of the steps that made them, or loosen the rule", figure=share,
    )  # fmt: skip


_LACKING = Measure(
    "lacking", "<= 0", "of the rows that `until` wants, lacking", "the input had no more, or `at_most` was reached",
    "raise `at_most`, bring more rows, or look at what was dropped, and loosen that rule",
    figure=lambda metrics: metrics["lacking"] / metrics["wanted"] if "lacking" in metrics else None,
)  # fmt: skip


def _wrong_types(where: str, columns: Columns) -> Iterator[Finding]:
    """Yield what an expression does that a column's type doesn't allow; nothing of one that is none, which `check` reports."""
    from caiflow.operators.filtering.expression_types import check_types

    try:
        expression = parse(where)
    except ExpressionError:
        return
    try:
        check_types(expression, columns.types)
    except ExpressionError as error:
        yield finding(error, ("where",))


def _wrong_columns(rule: Rule, columns: Columns) -> Iterator[Finding]:
    if rule.where is not None:
        yield from _wrong_types(rule.where, columns)
        return
    fields: Any = getattr(rule, rule.kind)
    if isinstance(fields, Duplicates):
        return
    looked_at = {"column": fields.column or answer_column(columns.types)}
    other = _other(fields)
    if other is not None and looked_at["column"] == other:
        message = f"`{rule.kind}` compares `{other}` with itself, and would leave out every row"
        yield Finding((rule.kind,), message, "name another column, or filter after `revise`")
        return
    if isinstance(fields, Compared):
        looked_at["other"] = fields.other
    for field, name in looked_at.items():
        known = columns.types.get(name or "")
        if known not in (None, "text"):
            message = f"`{rule.kind}` looks at texts, and `{name}` holds {known}"
            yield Finding(
                (rule.kind, *([field] if field in fields.model_fields_set else [])), message, "name a column of texts"
            )


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
    other = _other(fields)
    return [fields.column or "|".join(ANSWERS), *([other] if other else [])]


def _other(fields: Any) -> str | None:
    """Return the column that a rule's answers are compared with; None where it isn't one."""
    if isinstance(fields, Copies):
        return None if fields.of == "examples" else fields.of
    return fields.other if isinstance(fields, Compared) else None
