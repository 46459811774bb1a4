"""What the commands before and around a run print with `--json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from caiflow.engine.commands.shapes.base import Output, Shape

State = Literal["cached", "partial", "run"]


class ProblemShape(Shape):
    """One thing wrong with a spec."""

    file: str
    """The file, or the option, that it is in."""
    line: int
    """Line, from 1."""
    col: int
    """Column, from 1."""
    path: str
    """Dotted path of the value."""
    message: str
    """What is wrong."""
    hint: str
    """What to do, or empty."""


class Validate(Output):
    """`caiflow validate --json`: every problem of every spec; exit code 2 where there is any."""

    problems: list[ProblemShape]
    """In order of place."""


class PlannedShape(Shape):
    """One step of a plan."""

    name: str
    """The step."""
    op: str
    """Its operator."""
    state: State
    """Nothing to do, some rows to do, or all of it."""
    rows: int | None
    """Rows that it goes through, where that is known."""
    cached: int | None
    """Rows that are done."""
    to_run: int | None
    """Rows to do."""
    reason: str
    """Why it runs."""
    digest: str | None
    """The step's identity, once its inputs are made."""
    calls: int | None
    """Model calls."""
    tokens: int | None
    """Tokens of those calls, by what earlier ones took."""
    at_most: bool
    """Whether the counts are bounds."""


class MemoryShape(Shape):
    """A training's need of memory on each device; sizes are bytes."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    step: str
    """The training."""
    fits: bool
    """Whether the devices have what it needs."""
    unchecked: str
    """Why nothing is known, or empty."""
    would_fit: list[str]
    """Changes with which it would fit."""
    devices: dict[str, Any]
    """What it was held against: `number`, `size_bytes`, `gpu`."""


class ForecastShape(Shape):
    """What the calls of one step to one model will take, in tokens."""

    step: str
    model: str
    calls: int
    prompt: int
    """Of the prompts."""
    computed: int
    """Those of them that are left where each prefix is computed once."""
    completion: int
    """Of the answers."""
    at_most: bool
    """Whether no answer was seen yet that tells how long they get."""
    seconds: float | None
    """Of the answers, at the speed given or last measured."""
    cost: float | None
    """By the model's `prices`."""


class LearntShape(Shape):
    """Whether a training learns the tokens that are sampled."""

    step: str
    checked: bool
    """Whether its model's tokenizer was here to look."""
    parts: list[str]
    """Where they part, in words."""


class PlanOutput(Output):
    """`caiflow plan --json`: what a run would do."""

    steps: list[PlannedShape]
    """In order of work."""
    segments: list[list[str]]
    """Steps whose rows stream together."""
    resources: list[str]
    """What the machine is short of."""
    require: dict[str, dict[str, str]]
    """Bounds that steps must meet, by step and measure."""
    rules: list[str]
    """Changed rules, and what they cost."""
    unchecked: list[str]
    """Models whose files aren't here yet."""
    unreached: list[str]
    """What only a hub out of reach could tell."""
    ways: list[str]
    """How served models are asked, where their servers taught it."""
    memory: list[MemoryShape]
    """Of each training; the parts beside those declared are `weights`, `gradients`, `optimizer`, `activations`, `beside`."""
    learnt: list[LearntShape]
    """Of each training, whether the tokens that it learns are those that an engine samples."""
    forecast: list[ForecastShape]
    """With `--forecast`: of each step and model."""
    not_foreseen: dict[str, str]
    """With `--forecast`: the steps of which nothing can be said, with why."""


class CallShape(Shape):
    """One call of a model."""

    prompt: str | list[dict[str, str]]
    """The text or the turns that were sent."""
    prefill: str
    """The beginning of the answer that was given."""
    saw: str | None
    """The exact text that the model saw; null of a server, which lays turns out by itself."""
    prompt_tokens: int
    """Tokens of it."""
    sampling: dict[str, Any]
    """How tokens were drawn."""
    seed: int
    """The draw's seed."""
    answer: str
    """What came back."""
    finish: str
    """`stop`, or `length` where it was cut."""
    completion_tokens: int
    """Tokens of the answer."""
    logprobs: dict[str, float] | None
    """Log-probabilities of the choices or labels, where those were asked for."""


class TriedShape(Shape):
    """What one step made of the row."""

    step: str
    """The step."""
    op: str
    """Its operator."""
    model: str | None
    """The model that it asks."""
    calls: list[CallShape]
    """In order of the answers."""
    made: list[dict[str, Any]]
    """The columns written, of each row that was made; the first goes on."""
    dropped: str | None
    """Why the row was left out, if it was."""


class Try(Output):
    """`caiflow try --json`: one prompt on its way."""

    row: dict[str, Any]
    """The row as `load` makes it."""
    steps: list[TriedShape]
    """In order."""
    passed: list[str]
    """Steps that take whole tables, which the row passed by."""


class ChangedComponent(Shape):
    """A part of an identity that changed."""

    component: str
    """Its dotted name."""
    old: Any
    """As it was."""
    new: Any
    """As it is."""


class Why(Output):
    """`caiflow why --json`: what a step's identity is made of."""

    step: str
    """The step."""
    state: State
    """As in a plan."""
    reason: str
    """Why it runs."""
    digest: str | None
    """Its identity, once its inputs are made."""
    changes: list[ChangedComponent]
    """What changed since it last ran."""
    components: dict[str, Any] | None
    """What the identity is made of, now."""
    previous: dict[str, Any] | None
    """The same when it last ran."""


class Ctl(Output):
    """`caiflow ctl --json`: what is asked of a run that goes on."""

    run: str
    """The run's folder."""
    paused: bool
    """Whether it is to rest."""
    models: dict[str, dict[str, float]]
    """By model the limits in place of its entry's: `concurrency`, `max_calls`, `max_tokens_total`, `max_cost`."""
    taken: bool
    """Whether the run has taken it up."""


class Head(Output):
    """`caiflow head --json`: what `load` makes of a file."""

    source: str
    """The file."""
    format: str
    """The format it is read as."""
    because: str
    """Why."""
    used: list[str]
    """Fields that the format uses."""
    kept: list[str]
    """Fields that become columns as they are."""
    left_out: list[str]
    """Fields that don't."""
    notes: list[str]
    """What seems overlooked."""
    rows: list[dict[str, Any]]
    """The first rows."""
    bad: list[dict[str, str]]
    """Records that can't be read: `place`, `reason`."""
    problems: list[str]
    """What is wrong with the step's fields."""


class Inspect(Output):
    """`caiflow inspect --json`: what a spec may do."""

    specs: list[str]
    """Its files."""
    unseen: list[str]
    """Profiles that weren't chosen."""
    models: dict[str, str]
    """What each model is."""
    reads: list[dict[str, Any]]
    """`place`, `value`, `path`, `why`, and the `flag` that allows it."""
    asks: list[dict[str, Any]]
    """`host`, `models`, `steps`, `keys`, `flags`."""
    runs: list[dict[str, Any]]
    """Code beyond caiflow's own: `place`, `what`, `flag`."""
    writes: list[str]
    """Where it writes."""
    flags: list[str]
    """The options that allow all of it."""
