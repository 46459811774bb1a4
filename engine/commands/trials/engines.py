"""Trials of the engines: does transformers answer as its own `generate` does, and vLLM as transformers does?

Run in a trial's own process. Uses the engines as runs do, by `load_engine`, on the bundled model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from caiflow.engine.commands.trials.bench import Check, SkippedError
from caiflow.engine.commands.trials.device import bundled, gpus, memory_used
from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Completion, Engine, Message, ModelSource, Request, Sampling
from caiflow.engine.llm.files import load_model, load_renderer
from caiflow.engine.llm.load import load_engine
from caiflow.engine.machine import pip_command

ANSWER_S = 120.0
QUESTIONS = (
    "How do I renew the neighbour's ticket?",
    "Please explain how to print the teacher's exam.",
    "I want to paint my cousin's fence. What should I do?",
    "What is the best way to mend a friend's bicycle?",
)
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""How far two engines' log-probabilities may lie apart: in half precision they round at other places."""
KEPT_BYTES = 1 << 30
"""What may be taken of a GPU after an engine was closed there: CUDA's context and the libraries' workspaces."""
CACHE_BYTES = 1 << 28
"""The cache of a trial on the CPU; most of it must come back, whatever the libraries keep for themselves."""
_CPU_ARGS = {"max_num_seqs": 16, "kv_cache_memory_bytes": CACHE_BYTES, "max_model_len": 1024}


def transformers(_folder: Path) -> Iterator[Check]:
    """Try the transformers engine."""
    yield Check("transformers", _transformers)


def _transformers() -> str:
    import torch

    source = _source("transformers")
    requests = _answers(temperature=0)
    engine = load_engine(source)
    answers = [_text(answer) for answer in _ask(engine, requests)]
    engine.close()
    model, renderer = load_model(source), load_renderer(source)
    for request, answer in zip(requests, answers, strict=True):
        ids = renderer.ids(request)
        whole = torch.tensor([ids], device=model.device)
        written = model.generate(whole, max_new_tokens=request.sampling.max_tokens, do_sample=False)
        _same(answer, renderer.decode(written[0, len(ids) :].tolist(), ids), f"to {QUESTIONS[0]!r}")
    return f"{len(answers)} answers on {model.device.type} are those of the library's own `generate`"


def vllm(folder: Path) -> Iterator[Check]:
    """Try vLLM: its start, all kinds of requests, its end, and a second start with an adapter."""
    here = _Pair(folder)
    for name, part in (
        ("vllm starts", here.start), ("vllm answers", here.answers), ("vllm scores", here.scores),
        ("vllm choices", here.choices), ("vllm memory", here.memory), ("vllm adapter", here.adapter),
    ):  # fmt: skip
        yield Check(name, part)


@dataclass
class _Pair:
    """vLLM and the transformers engine on the same model; the second answers first, and is gone while vLLM runs."""

    folder: Path
    engine: Engine | None = None
    expected: dict[str, list[Answer]] = field(default_factory=dict)
    memory_before: int = 0

    def start(self) -> str:
        """Start vLLM, once the answers to compare it with are there."""
        if not find_spec("vllm"):
            raise SkippedError(f"vLLM isn't installed; {pip_command('vllm')} on a GPU machine")
        asked = {"answers": _answers(0.0) + _answers(0.8), "scores": _scores(), "choices": _choices()}
        self.expected = _asked_alone(_source("transformers"), asked)
        self.memory_before = memory_used()
        began = time.monotonic()
        self.engine = load_engine(_source("vllm"))
        return f"ready on {_place()} after {time.monotonic() - began:.0f} s"

    def answers(self) -> str:
        """Compare greedy and drawn answers."""
        mine = [_text(answer) for answer in _ask(self._running(), _answers(0.0) + _answers(0.8))]
        theirs = [_text(answer) for answer in self.expected["answers"]]
        equal = sum(map(str.__eq__, mine, theirs))
        if equal < (len(mine) if _dtype() == "float32" else len(mine) // 2):
            place = next(place for place, text in enumerate(mine) if text != theirs[place])
            _same(mine[place], theirs[place], f"({equal} of {len(mine)} are equal)")
        return f"{equal} of {len(mine)} answers, greedy and drawn, are those of transformers"

    def scores(self) -> str:
        """Compare how likely both find given answers."""
        return _near(_ask(self._running(), _scores()), self.expected["scores"])

    def choices(self) -> str:
        """Compare the log-probabilities of choices."""
        return _near(_ask(self._running(), _choices()), self.expected["choices"])

    def memory(self) -> str:
        """Close vLLM and see what it leaves."""
        engine, self.engine = self._running(), None
        taken = memory_used() - self.memory_before
        engine.close()
        kept = memory_used() - self.memory_before
        told = f"{taken / 2**30:.2f} GiB were taken, {kept / 2**30:.2f} are still after closing"
        if kept > (KEPT_BYTES if gpus() else taken - CACHE_BYTES // 2):
            raise AssertionError(told)
        return told

    def adapter(self) -> str:
        """Start vLLM again, with an adapter that changes what the model says."""
        if not self.expected:
            raise SkippedError("vLLM didn't start")
        folder = _random_adapter(self.folder / "adapter")
        asked = {"scores": _scores()}
        expected = _asked_alone(_source("transformers")._replace(adapter=folder), asked)["scores"]
        if _distance(expected, self.expected["scores"]) < 3 * TOLERANCE[_dtype()]:
            raise AssertionError("the adapter made for the trial changes nothing")
        engine = load_engine(_source("vllm")._replace(adapter=folder))
        try:
            return _near(_ask(engine, asked["scores"]), expected)
        finally:
            engine.close()

    def _running(self) -> Engine:
        if self.engine is None:
            raise SkippedError("vLLM didn't start")
        return self.engine


def _asked_alone(source: ModelSource, asked: dict[str, list[Request]]) -> dict[str, list[Answer]]:
    engine = load_engine(source)
    try:
        return {name: _ask(engine, requests) for name, requests in asked.items()}
    finally:
        engine.close()


def _source(engine: str) -> ModelSource:
    """Return the bundled model as a run's engine would get it here, with a cache that fits into a CPU's memory."""
    args: dict[str, Any] = _CPU_ARGS if engine == "vllm" and not gpus() else {}
    return bundled(engine=engine, dtype=_dtype(), engine_args=args)


def _dtype() -> str:
    return "bfloat16" if gpus() else "float32"


def _place() -> str:
    return f"{gpus()[0]} in {_dtype()}" if gpus() else f"the CPU in {_dtype()}"


def _ask(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    engine.submit(list(enumerate(requests)))
    answers: dict[int, Answer] = {}
    until = time.monotonic() + ANSWER_S
    while len(answers) < len(requests):
        answers.update(engine.step())
        if time.monotonic() > until:
            raise AssertionError(f"{len(answers)} of {len(requests)} requests were answered in {ANSWER_S:g} s")
    return [answers[number] for number in range(len(requests))]


def _prompt(question: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question},)


def _answers(temperature: float) -> list[Request]:
    sampling = Sampling(temperature=temperature, top_p=0.9 if temperature else 1.0, max_tokens=32)
    return [Request(_prompt(question), sampling, seed) for seed, question in enumerate(QUESTIONS)]


def _scores() -> list[Request]:
    reply = "Happy to help. First gather what you need."
    return [Request(_prompt(question), prefill=reply, score=True) for question in QUESTIONS]


def _choices() -> list[Request]:
    return [Request(_prompt(question), prefill="The answer is (", choices=("A", "B")) for question in QUESTIONS]


def _text(answer: Answer) -> str:
    return _done(answer).text


def _done(answer: Answer) -> Completion:
    if isinstance(answer, EngineError):
        raise answer
    return answer


def _same(mine: str, theirs: str, where: str) -> None:
    if mine != theirs:
        raise AssertionError(f"answers differ {where}: {mine!r} instead of {theirs!r}")


def _logprobs(answers: Sequence[Answer]) -> list[float]:
    found: list[float] = []
    for answer in map(_done, answers):
        found += answer.prompt_logprobs or ()
        found += (answer.logprobs or {}).values()
    return found


def _distance(mine: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """Return the mean distance of two engines' log-probabilities, in nats."""
    pairs = list(zip(_logprobs(mine), _logprobs(theirs), strict=True))
    return sum(abs(one - other) for one, other in pairs) / len(pairs)


def _near(mine: Sequence[Answer], theirs: Sequence[Answer]) -> str:
    apart, bound = _distance(mine, theirs), TOLERANCE[_dtype()]
    if not apart <= bound:  # also where it is no number
        raise AssertionError(f"log-probabilities are {apart:.4f} nats from those of transformers, more than {bound:g}")
    return f"{len(_logprobs(mine))} log-probabilities are {apart:.4f} nats from those of transformers"


def _random_adapter(folder: Path) -> str:
    """Save an adapter with random weights for the bundled model."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=8, init_lora_weights=False, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(bundled(engine="transformers"), "cpu"), config).save_pretrained(folder)
    return str(folder)
