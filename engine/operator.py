"""What an operator is: its parameter model, its columns, and the four shapes an author writes.

From one declaration come the JSON Schema, the checks, the documentation and the identity. Knows no operator by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from caiflow.engine.asking import Ask as Ask
from caiflow.engine.asking import Job as Job
from caiflow.engine.asking import LLMs as LLMs
from caiflow.engine.asking import Log as Log
from caiflow.engine.asking import RowDropped as RowDropped
from caiflow.engine.asking import RowLLM as RowLLM
from caiflow.engine.asking import together as together
from caiflow.engine.errors import Finding, WrongValue
from caiflow.engine.health import BOUND, DROPPED, NONE_LEFT, ROWS, Measure
from caiflow.engine.llm.base import Sampling
from caiflow.engine.rows.columns import ANSWERS as ANSWERS
from caiflow.engine.rows.columns import Columns, ColumnType, Row
from caiflow.engine.rows.gathering import Gathering, seen
from caiflow.engine.rows.tool_use import refused_tools

if TYPE_CHECKING:
    import pyarrow as pa

    from caiflow.engine.constitution.load import Constitution
    from caiflow.engine.llm.tokenizer_files import ModelFiles
    from caiflow.engine.rows.folder import RowsWriter

Kind = Literal["rows", "model", "metrics"]

# How a field's meaning is declared; the marks travel in the JSON Schema.
RowsRef = Annotated[str, Field(json_schema_extra={"x-ref": "rows"})]
"""The name of a step whose output is rows."""
ModelRef = Annotated[str, Field(json_schema_extra={"x-ref": "model"})]
"""The name of an entry of `models:` or of a step whose output is a model."""
ModelRefOrName = Annotated[str, Field(json_schema_extra={"x-ref": "model", "x-plain": True})]
"""A mapping's key: a model's name where the value is a plain one, any name where it is a group of fields."""
ColumnName = Annotated[str, Field(json_schema_extra={"x-column": True}, min_length=1)]
"""The name of a column of the input."""
ExpressionText = Annotated[str, Field(json_schema_extra={"x-expression": True}, min_length=1)]
"""An expression over columns of the input."""
SPEED: dict[str, Any] = {"x-speed": True}
"""`Field(json_schema_extra=SPEED)` marks a field that only affects speed: it stays out of the identity."""
NodeLabels = dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]]  # as Ray has them


class Strict(BaseModel):
    """A frozen group of fields that knows no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Resources(Strict):
    """What a step asks of the cluster; never part of its identity."""

    num_cpus: float | None = Field(default=None, ge=0)
    """CPU cores per worker; by default what the engine or trainer finds best."""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs per worker; by default 1 where the cluster has one and the step can use it."""
    workers: int = Field(default=1, ge=1, le=1024)
    """Worker processes: data-parallel training workers, or shards of a chain's rows (by default one for each node)."""


class Params(Strict):
    """Fields that every step has, whatever its operator."""

    trial: ClassVar[Mapping[str, Any]] = {}
    """Values that a trial on few rows (`--sample`) gives to fields that the spec leaves out."""

    description: str = Field(default="", json_schema_extra=SPEED)
    """A remark for the reader; no effect."""
    resources: Resources = Field(default=Resources(), json_schema_extra=SPEED)
    """CPUs, GPUs and workers to ask for; affects speed only."""
    require: dict[str, Annotated[str, Field(pattern=BOUND)]] = Field(default_factory=dict, json_schema_extra=SPEED)
    """Bounds on `rows`, on `dropped` (a share) and on the step's health measures, such as `{rows: ">= 100", circles: "< 0.1"}`.

    They are checked when the step is done; steps behind one that fails them don't begin. Never changes what is made.
    """

    @property
    def by_principles(self) -> Collection[str]:
        """The constitution's texts that these values ask for, by their stages, where the operator doesn't always take all."""
        return ()


class RowParams(Params):
    """Fields that every row operator has."""

    input: RowsRef
    """The step whose rows are read."""
    max_failed: int = Field(default=0, ge=0, json_schema_extra=SPEED)
    """Rows that may fail for good before the step fails; they are kept beside with the reason."""
    retries: int = Field(default=3, ge=0, json_schema_extra=SPEED)
    """Further tries of a call whose error may pass (timeout, lost engine)."""


class ModelRowParams(RowParams):
    """Fields of a row operator that asks a model."""

    model: ModelRef
    """The model that is asked."""
    concurrency: int = Field(default=0, ge=0, json_schema_extra=SPEED)
    """Rows in flight at once; 0 takes twice the engine's capacity."""


class SamplingParams(Strict):
    """How tokens are drawn; the names are those of vLLM and transformers."""

    temperature: float = Field(default=0.0, ge=0, le=10)
    """Softmax temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass kept (nucleus sampling); 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """Number of most likely tokens kept; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Tokens less likely than this share of the likeliest are dropped; 0 drops none."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Divides the score of tokens already seen; 1 is off."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are not part of it."""

    def sampling(self) -> Sampling:
        """Return the engine's form of these fields."""
        return Sampling(**self.__dict__)


class Reference(NamedTuple):
    """One edge of the graph: the field at `path` of a step names `name`; `key` says that this is a mapping's key."""

    path: tuple[str | int, ...]
    name: str
    kind: Literal["rows", "model", "constitution"]
    key: bool = False


class StepContext(NamedTuple):
    """What an operator may know of the spec around it."""

    seed: int = 0
    base_dir: Path = Path()
    constitution: Constitution | None = None


class Expected(NamedTuple):
    """The rows that a step will make: at most so many, just as many where `exact`; `answers` is the most in a row's list."""

    rows: int
    exact: bool = False
    answers: int = 1


class Calls(NamedTuple):
    """The model calls that a step is known to make before it runs: at most so many, and just as many where `exact`."""

    number: int
    exact: bool = False


class Until(NamedTuple):
    """How many rows a step wants to keep, and of how many at the most that the steps before it begin with (None: of all)."""

    accepted: int
    at_most: int | None = None


Passing = Callable[["pa.RecordBatch"], Sequence[bool]]
"""Says of rows, given in order and piece by piece, which are kept; what came earlier may decide about a row."""
P = TypeVar("P", bound=Params)


class Operator(ABC, Generic[P]):
    """Base of the four shapes; plugins subclass one of those, never this."""

    name: ClassVar[str]
    """What `op:` says in a spec."""
    version: ClassVar[int] = 1
    """Raised when the same parameters come to mean another output; part of the identity."""
    raised_for: ClassVar[Mapping[int, str]] = {}
    """What a version changed for those who have results of an earlier one: `plan` says it once, and what that costs them."""
    kind: ClassVar[Kind]
    """What the step's output is."""
    params_type: ClassVar[type[Params]]
    """The parameter model; set by subclasses."""
    uses_constitution: ClassVar[bool] = False
    """Whether a spec with this operator must name a constitution."""

    def __init__(self, params: P, context: StepContext) -> None:
        self.params = params
        self.context = context

    def __reduce__(self) -> tuple[Any, ...]:
        """Have it made again in another process, without what it has worked out in this one."""
        return type(self), (self.params, self.context)

    @property
    def constitution(self) -> Constitution:
        """The constitution of this step; raises ValueError where it has none, which the validator says before any run."""
        if self.context.constitution is None:
            raise WrongValue(f"{self.name}: no constitution", "name one under `constitution:`")
        return self.context.constitution

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return, by input step's name, the columns that must be there; `a|b` means any one of them."""
        return {}

    @abstractmethod
    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the output's columns, given those of each input step (by its name)."""

    def check(self) -> Iterator[Finding]:
        """Yield what neither the schema nor the parameter model can see to be wrong; reads no large file."""
        yield from ()

    def remarks(self) -> Iterator[Finding]:
        """Yield what is worth knowing before a run though nothing is wrong, such as what couldn't be checked."""
        yield from ()

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield what the inputs' columns, by step, rule out; those that are needed are there."""
        yield from ()

    def check_models(self, models: Mapping[str, ModelFiles], inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield what the models it names and the inputs' rows rule out together; models not on this machine yet are missing."""
        yield from ()

    def identity(self) -> Mapping[str, Any]:
        """Return what, beside the parameters, changes the output: prompts, few-shot texts, digests of source files (JSON)."""
        return {}

    def expects(self, inputs: Mapping[str, Expected]) -> Expected | None:
        """Return how many rows it will make, given those of each input step; None where that can't be known."""
        return None

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with the step's output, each with the bound within which it is healthy."""
        return ()

    def all_measures(self) -> list[Measure]:
        """Return the operator's own measures, and those of every step that makes rows."""
        return [*self.measures(), *([NONE_LEFT] if self.kind == "rows" else [])]

    def readings(self) -> list[str]:
        """Return the names that `require` may bound."""
        return [*([ROWS, DROPPED] if self.kind == "rows" else []), *(measure.name for measure in self.measures())]

    def promises(self) -> Constitution | None:
        """Return a constitution as large as the one that it makes can be, to check other steps by; None where it makes none."""
        return None

    def sources(self) -> Mapping[str, Path | str]:
        """Return local files and hub ids this step reads, by a name for the lock and the export."""
        return {}

    def handed_on(self, tool: str, step: str, made: Path) -> Iterator[tuple[str, str | Path]]:
        """Yield what another tool takes of the folder that a step `made`: names of files, and their text or what to copy."""
        del tool, step, made
        yield from ()


class RowOperator(Operator[P]):
    """One row in, the new columns of that row out, as a coroutine; the engine streams rows through chains of these."""

    kind = "rows"
    chooses: ClassVar[bool] = False
    """Whether its rows say which of two answers won (`chosen`, `rejected`), whatever they carried before."""

    @abstractmethod
    def writes(self) -> Mapping[str, ColumnType]:
        """Return the columns this operator adds or replaces, with their types."""

    @abstractmethod
    async def row(self, row: Row, llm: RowLLM) -> Row | list[Row]:
        """Return the new columns' values for one row, or a list of them: the row then becomes that many rows.

        Raises:
            RowDropped: the row is to be left out.
        """

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield inputs whose prompts have tool turns, where prompts decide the result: no model is asked about those."""
        if "prompt" in self.reads():
            yield from refused_tools(inputs, list(inputs), "prompt")

    def outdates(self) -> Collection[str]:
        """Return the columns of the input that aren't true any more beside the new ones, and are left out."""
        return ()

    def reads(self) -> Sequence[str]:
        """Return the columns whose values decide this operator's result; absent ones count as null."""
        return ()

    def answers(self, made: Row) -> list[str]:
        """Return what a model said of a row, as far as its new columns have it; an empty text stands for one unread."""
        written = [made.get(name) for name, kind in self.writes().items() if kind in ("text", "texts")]
        return [text for value in written for text in (value if isinstance(value, list) else [value]) if text is not None]

    def row_identity(self, row: Row) -> Any:
        """Return what, beside the columns read, decides this row's result: the texts of its principles, say (JSON-able)."""
        return None

    def row_identities(self, rows: Sequence[Row]) -> Sequence[Any]:
        """Return the same of many rows."""
        return [self.row_identity(row) for row in rows]

    def calls(self) -> int:
        """Return the number of model calls one row takes at the most; used for estimates and to spare the ledger."""
        return 1

    def calls_for(self, row: Row, coming: Collection[str] = ()) -> int:
        """Return the calls that this row takes at the most; `coming` names columns that earlier steps have yet to write."""
        return self.calls()

    def expects(self, inputs: Mapping[str, Expected]) -> Expected | None:
        """Return at most as many rows as the input has: some may be left out."""
        return (given := inputs.get(getattr(self.params, "input", ""))) and given._replace(exact=False)

    def calls_expected(self, given: Expected) -> int:
        """Return the calls that rows which are expected take at the most."""
        return given.rows * self.calls()

    def gathering(self) -> Gathering | None:
        """Return what takes finished rows in for `metrics`, in shards side by side; None where there are no figures."""
        return None

    def metrics(self, rows: Iterable[Row], dropped: Mapping[str, int]) -> Mapping[str, Any]:
        """Return figures about the step's finished output rows (read once, in any order), given its drops by reason."""
        return {} if (gathering := self.gathering()) is None else seen(gathering, rows).figures()

    def failure(self, metrics: Mapping[str, Any], said: str) -> str:
        """Return why its figures (`rows_in`, `rows_out` among them) say that it failed; `said` answered a dropped row."""
        return ""

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return the input's columns but for those outdated, and the ones written."""
        (given,) = inputs.values()
        return given.without(self.outdates()).plus(self.writes())


class TableOperator(Operator[P]):
    """A function from tables to one table."""

    kind = "rows"

    @abstractmethod
    def table(self, job: Job, out: RowsWriter) -> None:
        """Read `job.inputs`, write rows and dropped rows to `out`."""

    def until(self) -> Until | None:
        """Return when the row steps before it may end: `table` keeps so many rows that are `passing`; None to want all rows."""
        return None

    def passing(self, job: Job) -> Passing:
        """Return what says which rows of its input `table` would keep, where it has an `until`; `job` has its models alone."""
        raise NotImplementedError(f"{type(self).__name__} has an `until`, and doesn't say what passes")


class RowlessOperator(Operator[P]):
    """Base of the two shapes that make no rows; plugins subclass one of those, never this."""

    def columns(self, inputs: Mapping[str, Columns]) -> Columns:
        """Return no columns."""
        return Columns()

    def calls_expected(self, inputs: Mapping[str, Expected]) -> Calls | None:
        """Return its calls, given the rows of the input steps that are known; None where that can't be told."""
        return None


class ModelOperator(RowlessOperator[P]):
    """Training: rows and a model in, a model in the Hugging Face layout out."""

    kind = "model"

    def asks(self) -> Collection[str]:
        """Return which of its models it asks, through engines beside it and `job.llms`; it loads the others itself."""
        return ()

    @abstractmethod
    def train(self, job: Job) -> None:
        """Train and save into `job.out_dir`; keep checkpoints in `job.work_dir` and resume from them when they are there."""


class MetricsOperator(RowlessOperator[P]):
    """Models and tables in, figures out: `metrics.json` in `job.out_dir`, and beside it the rows behind them."""

    kind = "metrics"

    @abstractmethod
    async def measure(self, job: Job, llms: LLMs) -> Mapping[str, Any]:
        """Return the figures that go into `metrics.json`."""
