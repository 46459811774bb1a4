"""What an operator is given: a model for one row, or for the rows of a table; a job's inputs; and how it tells of its progress.

Seeds, retries and ledger are the engine's own. Operators see these names in `caiflow.engine.operator`. Asks nothing itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from caiflow.engine.llm.base import Completion, Message, ModelSource, Sampling
from caiflow.engine.rows.columns import Row

if TYPE_CHECKING:
    from caiflow.engine.rows.folder import Rows

T = TypeVar("T")


class RowDropped(Exception):
    """Raised by a row operator to leave a row out, with the reason; a tombstone keeps it from being paid for again.

    `said` is what the model answered, where the row is left out for that.
    """

    def __init__(self, reason: str = "", said: str = "") -> None:
        super().__init__(reason)
        self.said = said[:300]


class RowLLM(ABC):
    """The model as one row sees it: seeds, retries and the ledger are the engine's business.

    `sample` numbers several answers to one prompt: each number has its own seed.
    """

    @abstractmethod
    async def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),
        *,
        sample: int = 0,
        prefill: str = "",
        template: str = "",
    ) -> Completion:
        """Return the assistant's next turn."""

    @abstractmethod
    async def complete(self, text: str, sampling: Sampling = Sampling(), *, sample: int = 0) -> Completion:
        """Return the continuation of a plain text, without chat template."""

    @abstractmethod
    async def choose(
        self, messages: Sequence[Message] | str, choices: Sequence[str], *, prefill: str = ""
    ) -> Mapping[str, float]:
        """Return the log-probability (natural) of each choice as the next token; not normalised over the choices."""

    def other(self, model: str) -> RowLLM:
        """Return another model that the step names, as the same row sees it."""
        raise NotImplementedError(f"{type(self).__name__} knows no other model, got {model}")

    async def pick(self, messages: Sequence[Message] | str, choices: Sequence[str], *, prefill: str = "") -> Completion:
        """Return `logprobs` of each choice as `choose` does, or a text that names one, where a server gives none of them."""
        return Completion("", logprobs=await self.choose(messages, choices, prefill=prefill))

    async def score(self, prompt: Sequence[Message] | str, *, prefill: str = "") -> Completion:
        """Return `prompt_logprobs` of what an assistant says in a conversation, or of a plain text, or of the prefill alone."""
        raise NotImplementedError(f"{type(self).__name__} scores no texts")

    async def classify(self, prompt: Sequence[Message] | str) -> Mapping[str, float]:
        """Return the log-probability (natural) of each label of a classifier for a conversation or a plain text."""
        raise NotImplementedError(f"{type(self).__name__} knows no labels")


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of several calls of one row, all asked at once, in order."""
    import asyncio  # imported here: operators are read by `validate`, which runs none of them

    return list(await asyncio.gather(*calls))


Ask = Callable[[Row, RowLLM], Awaitable[Row]]
"""Asks a model about one row and returns the columns of its answer."""


class LLMs(ABC):
    """Models as a table of rows sees them: `map` runs a coroutine per row with ledger, retries and streaming."""

    @abstractmethod
    async def map(self, label: str, model: str, rows: Sequence[Row], ask: Ask) -> list[Row]:
        """Return `await ask(row, llm)` for each row, in order.

        `label` names the work in the ledger and the progress display.
        """

    def expect(self, rows: int) -> None:  # noqa: B027 - who shows no progress has no use for it
        """Be told of rows that `map` will be asked for, so that those count as still to come before it is."""


class Log(Protocol):
    """Takes progress as it is to be shown: `log(done=3, total=10, loss=0.5)`."""

    def __call__(self, **figures: Any) -> None:
        """Report these figures."""


@dataclass(slots=True)
class Job:
    """What a table, model or metrics operator is given to work with.

    `inputs` and `models` are by the names the parameters use. `out_dir` is where files go; it becomes the artifact.
    `metrics` ends up in run.json. `log` reports progress; None where nobody watches. `uids` names rows to look at, by measure.
    """

    out_dir: Path
    inputs: Mapping[str, Rows] = field(default_factory=dict)
    models: Mapping[str, ModelSource] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    work_dir: Path = Path()
    """Survives a kill: checkpoints go here; removed once the artifact is sealed."""
    log: Log | None = None
    uids: dict[str, list[str]] = field(default_factory=dict)
    step: str = ""
    """The step's name in its spec, for those who are told of the work."""
    llms: LLMs | None = None
    """The models that a training `asks`, for any event loop; None where it asks none."""
    ledger_dir: Path | None = None
    """Where the ledgers are; None where there are none."""
