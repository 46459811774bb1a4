"""An engine that answers by a function, at once: a real Engine behind the real host and client, without a model's cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from caiflow.engine.llm.base import Answer, Completion, Gate, Request
from caiflow.engine.llm.pulse import Pulse

Script = Callable[[Request], Answer]


def last_words(request: Request) -> Answer:
    """Answer with the end of the question and the seed, so that a changed prompt or row shows in the text."""
    text = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
    return Completion(f"re: {text[-40:]} #{request.seed}", "stop", len(text) // 4, 8)


class ScriptedEngine:
    """Answers `per_step` requests a step, oldest first; remembers what it was asked unless told not to."""

    waiting = ""

    def __init__(self, script: Script = last_words, *, capacity: int = 64, per_step: int = 0, keep: bool = True) -> None:
        self.capacity = capacity
        self.pulse = Pulse(first_s=0.0)
        self.gate: Gate | None = None
        self.asked: list[Request] = []
        self.steps = 0
        self._keep = keep
        self._script = script
        self._per_step = per_step or 10**9
        self._queue: list[tuple[int, Request]] = []

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue requests."""
        if self._keep:
            self.asked += [request for _, request in requests]
        self._queue += requests

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Answer the oldest."""
        self.steps += 1
        now, self._queue = self._queue[: self._per_step], self._queue[self._per_step :]
        return [(number, self._script(request)) for number, request in now]

    def close(self) -> None:
        """Nothing to free."""
