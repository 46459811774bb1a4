"""How a request's seed and filters travel through vLLM to the processor that draws, and which processor that is.

Imports nothing of vLLM: its front end and its workers both come by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from caiflow.engine.llm.base import Draws, Request, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams

_SEED, _SAMPLING = "caiflow_seed", "caiflow_sampling"
"""Keys of `SamplingParams.extra_args`."""
PROCESSORS = {1: "caiflow.engine.llm.vllm.draws_v1:SeededDraws", 2: "caiflow.engine.llm.vllm.draws_v2:SeededDraws"}
"""The logits processor for each of vLLM's model runners, by name: vLLM loads it in its workers."""


def seed_arguments(request: Request, draws: Draws) -> dict[str, Any]:
    """Return what vLLM's SamplingParams takes for a request whose tokens are drawn, by our processor or by vLLM itself."""
    sampling = request.sampling
    if draws == "vllm":
        return {"seed": request.seed, "top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
    filters = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
    return {"extra_args": {_SEED: request.seed, _SAMPLING: filters}}


def seeded(params: SamplingParams) -> tuple[int, Sampling] | None:
    """Return the seed and the sampling of a request, from vLLM's SamplingParams; None where nothing is drawn."""
    arguments = params.extra_args or {}
    return (arguments[_SEED], Sampling(*arguments[_SAMPLING])) if _SEED in arguments else None
