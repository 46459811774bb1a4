"""Whether two engines answer alike, where their kernels may round differently.

A token drawn near a boundary between two tokens may come out as either. So where two answers differ, the model itself is walked
along the answer in question: each of its tokens must be what the draw gives, or would give within `TOLERANCE` of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request
from caiflow.engine.llm.files import load_model, load_renderer
from caiflow.engine.llm.sampler import penalised, probabilities, uniforms

TOLERANCE = 1e-4
"""How far a probability may be off, and a score of a greedy answer: float32 kernels differ by about a hundredth of it."""


def assert_agree(source: ModelSource, requests: Sequence[Request], mine: Sequence[Answer], theirs: Sequence[Answer]) -> None:
    """Check answer by answer; `source` is the model that both engines ran, as transformers loads it."""
    for request, one, other in zip(requests, mine, theirs, strict=True):
        assert isinstance(one, Completion), one
        assert isinstance(other, Completion), other
        assert one.prompt_tokens == other.prompt_tokens
        if request.choices or request.score:
            _assert_likelihoods(one, other)
        elif one != other:
            assert explains(source, request, one), f"{one!r} can't be drawn for {request!r}; the other engine: {other!r}"


def _assert_likelihoods(one: Completion, other: Completion) -> None:
    import pytest

    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    assert one.prompt_logprobs == pytest.approx(other.prompt_logprobs, abs=1e-3)
    assert one.greedy == other.greedy


def explains(source: ModelSource, request: Request, answer: Completion) -> bool:
    """Say whether the model of `source` may give `answer` to `request`, every draw right within the tolerance."""
    model, renderer = load_model(source, "cpu"), load_renderer(source)
    ids = list(renderer.ids(request))
    paths: list[list[int]] = [[]]
    for _ in range(answer.completion_tokens):
        paths = [[*path, token] for path in paths for token in _admissible(model, ids, path, request)]
        assert len(paths) < 1000, "the draws of this request lie too near to boundaries to tell engines apart"
    return any(_reads(path, ids, renderer, request, answer) for path in paths)


def _admissible(model: Any, ids: list[int], path: list[int], request: Request) -> list[int]:
    sampling = request.sampling
    seen = ids + path
    with torch.inference_mode():
        logits = model(torch.tensor([seen])).logits[0, -1:].float()
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[0, seen] = True
    logits = penalised(logits, mask, [sampling.repetition_penalty])
    if sampling.temperature == 0:
        return torch.nonzero(logits[0] >= logits.max() - TOLERANCE)[:, 0].tolist()
    wanted = uniforms([request.seed], [len(path)])[0]
    found: set[int] = set()
    for top_p in {min(1.0, sampling.top_p + shift) for shift in (-TOLERANCE, 0, TOLERANCE)} if sampling.top_p < 1 else {1.0}:
        probs = probabilities(logits, [sampling._replace(top_p=top_p)])[0].double()
        above = probs.cumsum(0)
        hit = (above - probs - TOLERANCE <= wanted) & (wanted <= above + TOLERANCE) & (probs > 0)
        found |= set(torch.nonzero(hit)[:, 0].tolist())
    return sorted(found)


def _reads(path: list[int], ids: list[int], renderer: Any, request: Request, answer: Completion) -> bool:
    text = renderer.decode(path, ids)
    if request.sampling.stop:
        return text.startswith(answer.text)
    ended = bool(path) and path[-1] == renderer.tokenizer.eos_token_id
    return text == answer.text and ended == (answer.finish == "stop")
