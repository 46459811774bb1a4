"""How a request's seed and filters travel through vLLM to the processor that draws, and which processor that is.

Imports nothing of vLLM: its front end and its workers both come by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.llm.base import Draws, Request, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams

_SEED, _SAMPLING, _TOLD = "caiflow_seed", "caiflow_sampling", "caiflow_told"
"""Keys of `SamplingParams.extra_args`."""
PROCESSORS = {1: "caiflow.engine.llm.vllm.draws_v1:SeededDraws", 2: "caiflow.engine.llm.vllm.draws_v2:SeededDraws"}
"""The logits processor for each of vLLM's model runners, by name: vLLM loads it in its workers."""


def seed_arguments(request: Request, draws: Draws) -> dict[str, Any]:
    """Return what vLLM's SamplingParams takes for a request whose tokens are drawn, by our processor or by vLLM itself."""
    sampling = request.sampling
    if draws == "vllm":
        return {"seed": request.seed, "top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
    return {"extra_args": drawn_by_seed(sampling, request.seed)}


def drawn_by_seed(sampling: Sampling, seed: int, *, told: bool = False) -> dict[str, Any]:
    """Return what has our processor draw a request's tokens; `told`: each one's log-probability is left as its score."""
    filters = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
    return {_SEED: seed, _SAMPLING: filters, **({_TOLD: True} if told else {})}


class Seeded(NamedTuple):
    """How a request's tokens are drawn, and whether their log-probabilities are asked for."""

    seed: int
    sampling: Sampling
    told: bool


def seeded(params: SamplingParams) -> Seeded | None:
    """Return how the tokens of a request are drawn, from vLLM's SamplingParams; None where they aren't by a seed."""
    arguments = params.extra_args or {}
    return Seeded(arguments[_SEED], Sampling(*arguments[_SAMPLING]), _TOLD in arguments) if _SEED in arguments else None
