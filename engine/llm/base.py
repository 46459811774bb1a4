"""What an engine is asked and what it answers.

Owns the request and answer types and the small interface that every engine implements. Never imports an LLM library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.pulse import Pulse


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


class Sampling(NamedTuple):
    """How tokens are drawn. Temperature 0 is greedy; `top_k` 0, `top_p` 1 and `repetition_penalty` 1 switch those off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


class Request(NamedTuple):
    """One question to an engine.

    `prompt` is a conversation (the chat template is applied once) or a plain text (raw completion, no template). `prefill` is
    the beginning of the assistant's turn, already written; the answer continues it and doesn't repeat it. With `choices`, the
    engine answers the log-probability of each choice as the next token instead of a text; each choice must be one token there.
    `template` replaces the tokenizer's own chat template. `seed` makes sampling repeatable, whatever the batch. With `score`,
    the engine answers how likely the prompt itself is: the prefill where there is one, else of a conversation what its
    assistant says, of a plain text all tokens after the first (that is BOS, where the tokenizer has one). With `classify`, a
    classifier answers the log-probability of each of its labels as `logprobs`; other engines answer as if it weren't there.

    `turn`, `more` and `row` decide no answer, but who waits: where not all fit, the lowest turns are computed first. Calls with
    the same `row`, a name that no other row has, begin alike; `more` is how many of them will follow this one at the most.
    """

    prompt: tuple[Message, ...] | str
    sampling: Sampling = Sampling()
    seed: int = 0
    prefill: str = ""
    choices: tuple[str, ...] = ()
    template: str = ""
    score: bool = False
    classify: bool = False
    turn: int = -1
    more: int = 0
    row: str = ""

    def of_row(self, turn: int, more: int, row: str = "") -> Request:
        """Return the same question of a row; as `_replace`, in a quarter of the time."""
        return Request(*self[:-3], turn, more, row)


class Completion(NamedTuple):
    """One answer.

    `logprobs` has a natural logarithm per choice or label, only where those were asked for; `prompt_logprobs` one per scored
    token of the prompt, in order, only where `score` was; `greedy` then tells whether each is the likeliest there.

    `thought` is what a model that reasons wrote before it, where a server tells the two apart or the text does. `ids` are the
    tokens as they were sampled, the end of the turn among them; None where nobody tells, or `text` is only the beginning.

    `finish` is `stop` (end of turn or stop sequence) or `length` (cut at `max_tokens`); stop sequences aren't in `text`.
    """

    text: str
    finish: Literal["stop", "length"] = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: Mapping[str, float] | None = None
    prompt_logprobs: Sequence[float] | None = None
    greedy: bool | None = None
    thought: str | None = None
    ids: Sequence[int] | None = None


Answer = Completion | EngineError


class Gate(Protocol):
    """What lets an engine's calls in; asked in the engine's thread alone."""

    def wait_s(self) -> float:
        """Return how long the next step had better wait for rows that are about to ask on; 0 where it had better not."""

    def sent(self, at: float) -> None:
        """Note when the calls that arrive next were sent, by the monotonic clock: a step may have kept them waiting since."""

    def over(self, rows: Iterable[str]) -> None:
        """Note that rows which were to ask on won't."""


class Engine(Protocol):
    """A loaded model as a loop: hand requests in, step, take what has finished.

    One thread owns an engine. Requests finish in any order; a request that can't be answered finishes with an EngineError and
    disturbs no other.
    """

    capacity: int
    """How many requests at once keep the engine busy; callers hold up to twice as many in flight."""
    pulse: Pulse
    """Where it says that it gets on, before each forward pass."""

    @property
    def gate(self) -> Gate | None:
        """What lets its calls in; None where all go in as they come."""

    @property
    def waiting(self) -> str:
        """Whom it has long been waiting for, and how long; empty while it gets on."""

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue requests under the caller's own ids."""

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Work a little and return what finished; wait at most `timeout_s` where there is nothing to do."""

    def close(self) -> None:
        """Free memory and processes; the engine is of no use afterwards."""


@runtime_checkable
class Controlled(Protocol):
    """An engine that holds calls back by itself."""

    def control(self, asked: Mapping[str, Any]) -> None:
        """Let no call leave where it is `paused`, at most `concurrency` at once, and none beyond the `max_*`; else as begun."""


@runtime_checkable
class Cancelling(Protocol):
    """An engine that can stop computing an answer."""

    def cancel(self, number: int) -> None:
        """Have a call finish at once, with whatever answer: nobody waits for it."""


class LinkLost(Exception):
    """The engine behind a link died; what was in flight must be asked again."""


class Link(Protocol):
    """The way to one engine host, wherever it runs."""

    @property
    def capacity(self) -> int:
        """How many calls the engine works on at once."""

    @property
    def waiting(self) -> str:
        """Whom it has long been waiting for, as it last told, or that it is itself waited for; empty while it gets on."""

    async def open(self) -> None:
        """Wait until the engine has loaded and begin a session; `capacity` is right then. Raises EngineError, LinkLost."""

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        """Send requests, and say which rows won't ask on though their last call said so. Raises LinkLost."""

    async def collect(self) -> list[tuple[int, Answer]]:
        """Wait a while for answers. Raises LinkLost."""

    async def revive(self) -> None:
        """Wait until the engine is up again. Raises EngineError where it won't be."""


@runtime_checkable
class OwnLink(Link, Protocol):
    """A link to an engine whose calls may be dropped again; `own` where they cost no more than its time."""

    @property
    def own(self) -> bool:
        """Whether nobody is paid for its calls."""

    async def cancel(self, numbers: Sequence[int]) -> None:
        """Have it drop calls that nobody waits for any more. Raises LinkLost."""


Draws = Literal["caiflow", "vllm"]
"""Who draws tokens by a request's seed: this project's sampler, or vLLM's own."""


def only_vllm_gives(exact: bool, draws: Draws) -> dict[str, str]:
    """Return the settings of a model that only vLLM has, as a spec writes them."""
    return {**({"exact": "true"} if exact else {}), **({"draws": draws} if draws != "caiflow" else {})}


class ModelSource(NamedTuple):
    """A model that can be loaded: an entry of `models:` resolved, or a trained step's artifact.

    `path` is a local folder or hub id; `adapter` a PEFT adapter on top of it; `identity` what decides its answers; `gguf` the
    file whose weights `path` holds once `gguf.unpack` has dequantised them.
    """

    path: str
    identity: str
    revision: str | None = None
    adapter: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    engine: str = "auto"
    exact: bool = False
    draws: Draws = "caiflow"
    options: Mapping[str, Any] = {}
    trust_remote_code: bool = False
    gguf: str | None = None
    template_variables: Mapping[str, Any] = {}
    """What the chat template is given beside a conversation; it is in `chat_template` already, where that is there."""

    @property
    def served(self) -> bool:
        """Whether a server answers, rather than an engine here."""
        return self.engine == "openai"
