"""What a spec says of a grader: the question, the replies it may give, and how they are read. Asks no model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from caiflow.engine.operator import ColumnName, ModelRef, RowsRef, Strict

GIVEN = ("conversation", "request", "response", "prompt")
"""What every question may name; other names are columns of the row."""
READING_VERSION = 2
"""Raised when replies in text come to be read otherwise."""
_ReplyText = Annotated[str, Field(min_length=1)]


class Grading(Strict):
    """How a model grades one answer: a number for each reply that it may give, or the probability of a classifier's label."""

    question: str = ""
    """What is asked, a Jinja template; left out, the conversation goes through the model's own chat template, as guards want.

    It knows `conversation` (all turns and the answer as text), `request` (the last user's turn), `response` (the answer),
    `prompt` (the turns), and other columns of the row.
    """
    replies: dict[_ReplyText, float] = Field(default={"Yes": 1.0, "No": 0.0}, min_length=2)
    """Each reply and its number: `{Yes: 1, No: 0}`, a scale `{"1": 1, "2": 2, "3": 3}`, `{unsafe: 1, safe: 0}`."""
    label: str = ""
    """For a sequence-classification model: the label whose probability is the grade, instead of `replies`."""
    method: Literal["logprobs", "text"] = "logprobs"
    """`logprobs` weighs numbers by their replies' probabilities as the first token; `text` finds one reply in what is said."""
    prefill: str = ""
    """The beginning of the model's turn, which the reply continues: `The answer is (`."""
    max_tokens: int = Field(default=16, ge=1)
    """Longest reply that `text` reads, in tokens."""

    @field_validator("question")
    @classmethod
    def _is_template(cls, question: str) -> str:
        if question:
            from caiflow.operators.formats.templates import compiled

            compiled(question)
        return question

    @model_validator(mode="after")
    def _one_way(self) -> Grading:
        if len(set(self.replies.values())) < 2:
            raise ValueError("`replies` need two different numbers at least")
        said = {"replies", "method", "prefill", "max_tokens"} & self.model_fields_set
        if self.label and said:
            raise ValueError(f"a classifier's `label` is read by itself, without {', '.join(sorted(said))}")
        folded = {reply.casefold() for reply in self.replies}
        if self.method == "text" and len(folded) < len(self.replies):
            raise ValueError("two of `replies` are the same but for their case, which `text` doesn't tell apart")
        return self

    @property
    def span(self) -> tuple[float, float]:
        """The least and the greatest grade."""
        return (0.0, 1.0) if self.label else (min(self.replies.values()), max(self.replies.values()))


def columns(how: Grading) -> list[str]:
    """Return the columns that a question names beside the conversation and its answer, in order of their names."""
    if not how.question:
        return []
    from caiflow.operators.formats.templates import names_in

    return [name for name in names_in(how.question) if name not in GIVEN]


class ModelGrading(Grading):
    """A model that grades answers."""

    model: ModelRef
    """The model that grades."""


class BoundedGrading(ModelGrading):
    """A model that grades answers, and the grade from which on they meet what it is asked for."""

    above: float | None = None
    """An answer meets the grader where its grade is above this; by default halfway from the least grade to the greatest."""

    @property
    def bound(self) -> float:
        """The grade above which an answer meets the grader."""
        return sum(self.span) / 2 if self.above is None else self.above


class Grader(BoundedGrading):
    """A model that grades the answers of the models that are measured."""

    sets: tuple[str, ...] = ()
    """The sets of prompts, by their names under `inputs`, whose answers are graded; by default all."""


class AgreementParams(Strict):
    """Answers that people labelled, to hold a grader against; rows without a label are graded beside them."""

    input: RowsRef
    """The step whose rows hold conversations, answers and labels."""
    grader: str
    """The grader, by its name under `graders`."""
    labels: ColumnName
    """The column of people's labels: true and false, numbers (met above 0) or texts; null where nobody labelled."""
    met: tuple[str, ...] = ()
    """The texts that say that people see the grader's question met, where labels are texts."""
    answer: ColumnName | None = None
    """The column of the answers; by default the first of revision, response, chosen that the input has."""
    recall: float = Field(default=0.95, gt=0, le=1)
    """Share of the rows that people labelled yes which a bound on the grades has to find, for `false_positives`."""
    limit: int | None = Field(default=None, ge=1)
    """Rows graded, from the head; by default all."""
