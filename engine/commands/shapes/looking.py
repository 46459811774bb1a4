"""What the commands that look back print with `--json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from caiflow.engine.commands.shapes.base import Output, Shape


class RunLineShape(Shape):
    """One run of the list."""

    name: str
    """The spec's name."""
    path: str
    """The run's folder."""
    status: str
    """running, done, failed or interrupted."""
    started: float
    """Unix seconds."""
    seconds: float | None
    """What it took."""
    steps: dict[str, int]
    """Steps by status."""
    notes: int
    """Notes on what its steps made."""
    variant: str
    """What was asked beside the spec's file."""
    tags: list[str]
    """Its tags."""
    note: str
    """Its note, or empty."""


class Runs(Output):
    """`caiflow runs --json`: the runs of this machine's store."""

    runs: list[RunLineShape]
    """The latest last."""


class Tag(Output):
    """`caiflow tag --json`: what is said of a run now."""

    run: str
    """The run's folder."""
    tags: list[str]
    """In order of the alphabet."""
    note: str
    """The note, or empty."""


class RunOutput(Output):
    """`caiflow show RUN --json`: what run.json has. Further keys may come without a new version."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    caiflow: str
    """The version that ran it."""
    name: str
    """The spec's name."""
    status: str
    """running, done, failed or interrupted."""
    started: float
    """Unix seconds."""
    finished: float | None
    """Unix seconds."""
    seconds: float | None
    """What it took."""
    seed: int
    """The spec's seed."""
    steps: dict[str, dict[str, Any]]
    """By name: `op`, `digest`, `status`, `inputs`, `rows_in`, `rows_out`, `seconds`, `metrics`, counts and `error`."""
    notes: list[dict[str, Any]]
    """What is wrong with what steps made: `step`, `measure`, `value`, `threshold`, `message`, `uids`."""


class Figures(Output):
    """`caiflow show RUN STEP --json` of a step that measures: its metrics.json, whose keys are the operator's."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Model(Output):
    """`caiflow show RUN STEP --json` of a training."""

    path: str
    """The model's folder."""
    architecture: str
    """Its class in transformers."""
    adapter_of: str | None
    """The model that it is an adapter over."""
    dtype: str | None
    """Number format of the weights."""
    size_bytes: int
    """Size of the weights."""
    metrics: dict[str, Any]
    """Figures of the training."""
    history: list[dict[str, Any]]
    """Its curve, a point each."""


class Diff(Output):
    """`caiflow diff --json`: what differs between two runs; every entry has `old` and `new`, or names the side."""

    settings: list[dict[str, Any]]
    """Values of the specs, by `path`."""
    prompts: list[dict[str, Any]]
    """Prompts and principles, by `path`."""
    rows: list[dict[str, Any]]
    """By `step`: rows `same`, `changed`, `only_old`, `only_new`, `columns`, judged `pairs` and `flips`, `examples`."""
    metrics: list[dict[str, Any]]
    """Figures, number by number, by `path`."""
    figures: list[dict[str, Any]]
    """Figures with their intervals, by `step` and `name`; `apart` where the intervals don't overlap."""
    notes: list[dict[str, Any]]
    """Notes, by `path`."""
    one_sided: list[dict[str, Any]]
    """Steps that only one run made."""


class VerdictShape(Shape):
    """What became of one artifact."""

    step: str
    """The step."""
    path: str
    """Its folder."""
    files: int
    """Files that were hashed."""
    problems: list[str]
    """What isn't as it was sealed."""


class Verify(Output):
    """`caiflow verify --json`: exit code 1 where anything isn't as it was."""

    steps: list[VerdictShape]
    """Of each step that has an output."""


class ReplayedShape(Shape):
    """What became of one step's rows that were asked again."""

    step: str
    """The step."""
    model: str
    """The model's name in the spec."""
    verdict: Literal["same", "alike", "few", "drifted", "failed"]
    """Bit for bit; in distribution; too few rows to tell; neither; none could be asked."""
    asked: int
    """Rows that were asked again."""
    same: int
    """Rows whose answer is the same."""
    gone: int
    """Rows that the step leaves out now."""
    failed: int
    """Rows without an answer."""
    p: float | None
    """Probability of such a difference where the same model answered."""
    drifted: bool
    """Whether that is too small for chance, over all steps together."""
    examples: list[dict[str, Any]]
    """Some rows that differ: `uid`, and the columns as they were `kept` and are `new`."""
    error: str
    """Why there is no answer, of the first row without one."""


class Replay(Output):
    """`caiflow replay --json`: exit code 1 where a model drifted or couldn't be asked."""

    steps: list[ReplayedShape]
    """Of each step that asks a model row by row."""


class GateShape(Shape):
    """One bound and what came of it."""

    step: str
    """The step; empty for `notes`."""
    figure: str
    """The figure's dotted name."""
    bound: str
    """What was wanted."""
    verdict: Literal["holds", "crosses", "fails", "missing"]
    """Within it; its interval reaches beyond it; beyond it; no value."""
    value: float | int | None
    """The figure."""
    low: float | int | None
    """Lower end of its interval."""
    high: float | int | None
    """Upper end."""
    n: int | None
    """Prompts or answers behind it."""
    digest: str | None
    """Identity of the artifact that has it."""


class GateOutput(Output):
    """`caiflow gate --json`, and gate.json: exit code 1 where it isn't `passed`."""

    passed: bool
    """The run is done and every bound holds for the whole interval."""
    run: str
    """The run's folder."""
    name: str
    """The spec's name."""
    status: str
    """The run's."""
    lock_sha256: str | None
    """Digest of its lock."""
    gates: str
    """The file of bounds."""
    gates_sha256: str
    """Its digest."""
    at: float
    """Unix seconds."""
    version: str
    """The caiflow that looked."""
    notes: list[dict[str, Any]]
    """What is wrong with what the run's steps made, whether or not the bounds count it: step, measure, value, message, uids."""
    held: list[GateShape]
    """In the file's order."""


class ReportOutput(Output):
    """`caiflow report --json`."""

    path: str
    """The file."""
    size_bytes: int
    """Its size."""


class ExportOutput(Output):
    """`caiflow export --json`."""

    folder: str
    """Where it was written."""
    files: list[str]
    """What is in it."""
    left_out: list[str]
    """Files that were too large."""
    unasked: list[str]
    """Files outside the working folder, which stayed there."""
    drift: list[str]
    """What has changed since the run."""
    waiting: list[WaitingShape]
    """With `--as batch`: what the request files ask for."""


class WaitingShape(Shape):
    """Calls of one step that wait for the answers of a batch."""

    step: str
    """The step."""
    model: str
    """The model that it asks."""
    calls: int
    """How many."""


class Import(Output):
    """`caiflow import --json`."""

    lines: dict[str, int]
    """What became of them: `taken`, `failed`, `not_carried_out` (expired, cancelled), `not_asked`, `doubled`, `unreadable`."""
    taken: dict[str, int]
    """Answers taken, by step."""
    trouble: list[str]
    """The first of each kind of trouble, in words."""
    waiting: list[WaitingShape]
    """What can be asked for now."""


class Merge(Output):
    """`caiflow merge --json`."""

    folder: str
    """Where the model is."""
    files: list[str]
    """What is in it."""


class Push(Output):
    """`caiflow push --json`."""

    kind: Literal["model", "dataset"]
    """The repository's."""
    url: str | None
    """Where the commit is; null with `--dry-run`."""
    commit: str | None
    """Its id; null with `--dry-run`."""
    files: list[str]
    """What was pushed, or would be."""
    card: str
    """README.md."""
    left_out: list[str]
    """Files that the recipe names and that stayed here."""


class ThingShape(Shape):
    """One thing in the store."""

    kind: str
    """artifact, ledger, work, staging, run or aside."""
    path: str
    """Where it is, or was."""
    size_bytes: int
    """Its size."""


class Gc(Output):
    """`caiflow gc --json`."""

    removed: bool
    """False with `--dry-run`."""
    things: list[ThingShape]
    """What went, or would go."""
