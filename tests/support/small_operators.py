"""Small operators for the tests of the spec language: each shape once, with each mark that a parameter can carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from caiflow.engine.errors import Finding, WrongValue
from caiflow.engine.operator import (
    SPEED,
    ColumnName,
    Job,
    LLMs,
    MetricsOperator,
    ModelOperator,
    ModelRef,
    ModelRowParams,
    Operator,
    Params,
    RowLLM,
    RowOperator,
    RowsRef,
    SamplingParams,
    Strict,
    TableOperator,
)
from caiflow.engine.rows.columns import Columns, ColumnType, Row

if TYPE_CHECKING:
    from caiflow.engine.rows.folder import RowsWriter


class ReadParams(Params):
    """Fields of `read`."""

    source: str = Field(json_schema_extra={"x-path": "file"})
    """File that is read."""
    format: Literal["plain", "dialogue"] = "plain"
    """How it is laid out."""
    limit: int | None = Field(default=None, ge=1)
    """Rows taken from the head."""


class Read(TableOperator[ReadParams]):
    """Read prompts."""

    name = "read"
    params_type = ReadParams

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return uid and prompt."""
        return Columns({"uid": "text", "prompt": "messages"})

    def table(self, job: Job, out: RowsWriter) -> None:
        """Write one row."""
        out.write_rows([{"uid": "1", "prompt": [{"role": "user", "content": "hi"}]}])


class AskParams(ModelRowParams):
    """Fields of `ask`."""

    sampling: SamplingParams = SamplingParams()
    """How tokens are drawn."""
    samples: tuple[SamplingParams, ...] = ()
    """Several answers, each with its own sampling."""
    template: bool = True
    """Whether the chat template is applied."""
    into: str = Field(default="response", min_length=1, pattern=r"^[a-z_]+$")
    """Column written."""


class Ask(RowOperator[AskParams]):
    """Ask a model."""

    name = "ask"
    params_type = AskParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the prompt."""
        return {self.params.input: ["prompt"]}

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the answer."""
        return {self.params.into: "text"}

    async def row(self, row: Row, llm: RowLLM) -> Row:
        """Return the answer."""
        return {self.params.into: (await llm.chat(row["prompt"])).text}


class Improve(Ask):
    """Ask for a better answer, under a constitution."""

    name = "improve"
    uses_constitution = True

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return an answer."""
        return {self.params.input: ["prompt", "response|answer"]}


class Length(Strict):
    """A bound on the length of a column."""

    column: ColumnName = "response"
    """The column measured."""
    max: int = Field(ge=1)
    """Most characters."""
    min: int = Field(default=0, ge=0)
    """Least characters."""


class LengthRule(Strict):
    """The rule with its settings."""

    length: Length
    """The bounds."""


class LeakRule(Strict):
    """Another rule with a setting."""

    leak: int
    """Words in a row."""


class SiftParams(Params):
    """Fields of `sift`."""

    input: RowsRef
    """The rows."""
    drop: tuple[Literal["unchanged", "duplicates"] | LengthRule | LeakRule, ...] = Field(default=(), max_length=3)
    """The rules."""


class Sift(TableOperator[SiftParams]):
    """Leave rows out."""

    name = "sift"
    params_type = SiftParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns measured."""
        return {self.params.input: [rule.length.column for rule in self.params.drop if isinstance(rule, LengthRule)]}

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the input's columns."""
        return inputs[self.params.input]

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong with the bounds."""
        for place, rule in enumerate(self.params.drop):
            if isinstance(rule, LengthRule) and rule.length.min > rule.length.max:
                yield Finding(("drop", place, "length", "min"), f"min is above max, got {rule.length.min}", "lower it")

    def table(self, job: Job, out: RowsWriter) -> None:
        """Write all."""
        out.write_rows(job.inputs[self.params.input].pylist())


class BlendParams(Params):
    """Fields of `blend`."""

    inputs: dict[RowsRef, float] = Field(min_length=1)
    """Parts by step."""

    @field_validator("inputs")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        if not any(value.values()):
            raise WrongValue("at least one part must be above 0", "raise one")
        return value


class Blend(TableOperator[BlendParams]):
    """Blend rows."""

    name = "blend"
    params_type = BlendParams

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return what all inputs have."""
        first, *others = inputs.values()
        return Columns({name: kind for name, kind in first.types.items() if all(name in other for other in others)})

    def table(self, job: Job, out: RowsWriter) -> None:
        """Write nothing."""


class Lora(Strict):
    """An adapter."""

    rank: int = Field(default=8, ge=1)
    """Rank."""


class TrainParams(Params):
    """Fields of `train`."""

    input: RowsRef
    """Rows."""
    model: ModelRef
    """Where training starts."""
    learning_rate: float = Field(default=2e-5, gt=0, lt=1)
    """Step size."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rows."""
    lora: Lora | None = None
    """Adapter to train, or all weights."""
    workers: int = Field(default=1, ge=1, json_schema_extra=SPEED)
    """Processes."""


class Train(ModelOperator[TrainParams]):
    """Train a model."""

    name = "train"
    params_type = TrainParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the answer."""
        return {self.params.input: ["response"]}

    def train(self, job: Job) -> None:
        """Write nothing."""


class ScoreParams(Params):
    """Fields of `score`."""

    models: tuple[ModelRef, ...] = Field(min_length=1)
    """Models compared."""
    inputs: dict[str, RowsRef] = Field(default_factory=dict)
    """Prompt sets by label."""


class Score(MetricsOperator[ScoreParams]):
    """Score models."""

    name = "score"
    params_type = ScoreParams

    async def measure(self, job: Job, llms: LLMs) -> Mapping[str, Any]:
        """Return nothing."""
        return {}


ALL: tuple[type[Operator[Any]], ...] = (Read, Ask, Improve, Sift, Blend, Train, Score)
