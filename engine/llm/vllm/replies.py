"""Replies that vLLM draws beside a model that learns, in the same process: reinforcement learning's rollouts.

The weights are taken over from that model as often as they change, and what was computed with the old ones is forgotten. Each
reply is drawn by its own seed, as answers are elsewhere, so that a training that was cut off draws the same ones again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource, Sampling
from caiflow.engine.llm.vllm.engine import shut_down
from caiflow.engine.llm.vllm.seeds import drawn_by_seed
from caiflow.engine.llm.vllm.start import start_vllm

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

Ended = Callable[[Mapping[int, Sequence[int]]], None]
"""Is told the replies that have ended, by place."""


class Reply(NamedTuple):
    """The ids of a reply's tokens, the end of the turn among them, and their log-probabilities when they were drawn.

    These are those of the model at the sampling's temperature, whatever `top_p` and `top_k` left out.
    """

    ids: list[int]
    logps: list[float]


class Replies:
    """vLLM with a model whose weights are another's; `context` is the longest prompt and reply together, in tokens.

    Raises:
        EngineError: kind `load`, as `load_vllm` does.
    """

    def __init__(self, source: ModelSource, context: int, gpu_memory: float, ends: Sequence[int]) -> None:
        # Where a token was drawn by its seed, its log-probability is left as its score, and its score is told.
        arguments = {"max_model_len": context, "logprobs_mode": "processed_logits"}
        options = {"engine_args": {**arguments, "gpu_memory_utilization": gpu_memory}}
        alike = source._replace(options=options, quantization=None, exact=False, draws="caiflow")
        self._engine: LLMEngine = start_vllm(alike)
        self._ends = list(ends)
        self._count = 0

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Have these weights, by their names in a saved model, in place of those that there are.

        Raises:
            EngineError: vLLM knows no weights of these names, or of this shape.
        """
        try:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        except (KeyError, ValueError, AssertionError, RuntimeError) as error:
            told = f"vLLM can't take the weights that were learnt: {type(error).__name__}: {error}"
            raise EngineError(told, "leave `use_vllm` out: transformers draws then", kind="load") from error
        self._engine.reset_prefix_cache()

    def draw(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], ended: Ended) -> list[Reply]:
        """Return a reply to each prompt, given as token ids; `ended` is told of those that weren't cut off, as they end.

        Raises:
            EngineError: vLLM itself failed, or refused a prompt.
        """
        places = {str(self._count + place): place for place in range(len(prompts))}
        self._count += len(prompts)
        for name, place in places.items():
            self._engine.add_request(
                name, {"type": "token", "prompt_token_ids": list(prompts[place])}, self._params(sampling, seeds[place])
            )
        found: dict[int, Reply] = {}
        while self._engine.has_unfinished_requests():
            done = {places[output.request_id]: self._read(output) for output in self._engine.step() if output.finished}
            found |= done
            if whole := {place: reply.ids for place, reply in done.items() if reply.ids[-1] in self._ends}:
                ended(whole)
        return [found[place] for place in range(len(prompts))]

    def close(self) -> None:
        """Stop vLLM and free its memory."""
        shut_down(self._engine)

    def _params(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature, max_tokens=sampling.max_tokens, repetition_penalty=sampling.repetition_penalty,
            extra_args=drawn_by_seed(sampling, seed, told=True), logprobs=0, stop_token_ids=self._ends, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY, skip_clone=True,
        )  # fmt: skip

    def _read(self, output: RequestOutput) -> Reply:
        best: CompletionOutput
        (best,) = output.outputs
        if best.finish_reason not in ("stop", "length") or best.logprobs is None:
            raise EngineError(f"vLLM ended a reply early, got {best.finish_reason!r}", kind="engine_lost", retry=True)
        ids = list(best.token_ids)
        return Reply(ids, [of[token].logprob for token, of in zip(ids, best.logprobs, strict=True)])
