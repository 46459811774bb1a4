"""The engine that runs a model with vLLM inside this process, on GPUs or on a CPU.

Owns the translation of requests and answers; start.py starts vLLM. Prompts go in as token ids from the same renderer as
everywhere else and answers are decoded by it, once, at the end; vLLM's own text only finds stop sequences. Uses the LLM
engine's own add-and-step loop, without a server or a process between. Imported on workers only.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Completion, Draws, Request
from caiflow.engine.llm.order.gate import Gate
from caiflow.engine.llm.pulse import Pulse
from caiflow.engine.llm.render import Rendered, Renderer, scored_completion, unanswered
from caiflow.engine.llm.stops import Stops
from caiflow.engine.llm.vllm.seeds import seed_arguments

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A request under way: the caller's number for it, its prompt's ids, and what its answer is read with."""

    number: int
    request: Request
    ids: Sequence[int]
    choices: Mapping[str, int]
    scored: Rendered | None


def shut_down(engine: LLMEngine) -> None:
    """Stop vLLM and free its memory, so that another can start in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.engine_core.shutdown()
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()


class VLLMEngine:
    """An Engine (see base.py) around a started vLLM `LLMEngine`.

    With `adapter`, every request goes through that LoRA. `draws` says whether our processor draws or vLLM itself, `scores`
    whether it can tell how likely a text is: under an adapter on the output head it can't, and would stop.
    """

    waiting = ""  # for nobody

    def __init__(
        self,
        engine: LLMEngine,
        renderer: Renderer,
        adapter: LoRARequest | None = None,
        draws: Draws = "caiflow",
        *,
        scores: bool = True,
    ) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.capacity = int(engine.vllm_config.scheduler_config.max_num_seqs)
        self.pulse = Pulse()
        self._pass_tokens = int(engine.vllm_config.scheduler_config.max_num_batched_tokens)
        self._unread = 0
        self._context = int(engine.vllm_config.model_config.max_model_len)
        self._engine = engine
        self._renderer = renderer
        self._adapter = adapter
        self._draws = draws
        self._scores = scores
        self._params_type, self._final = SamplingParams, RequestOutputKind.FINAL_ONLY
        cache = engine.vllm_config.cache_config
        self.gate = Gate(self.capacity, int(cache.num_gpu_blocks or 0) - 1, int(cache.block_size))
        self._asked: dict[str, _Asked] = {}
        self._outside: dict[int, _Asked] = {}
        self._finished: list[tuple[int, Answer]] = []
        self._count = 0

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Render requests and have the gate let them in; one that can't be rendered or doesn't fit finishes with its error."""
        for number, request in requests:
            try:
                asked = self._outside[number] = self._rendered(number, request)
            except EngineError as error:
                self._finished.append((number, error))
                continue
            if self.gate.arrive(number, request, asked.ids):
                self._add(number)

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Run steps of vLLM's scheduler until something finishes or `timeout_s` has passed.

        Raises:
            EngineError: kind `engine_lost`: vLLM itself failed; none of its requests will be answered.
        """
        deadline = time.monotonic() + timeout_s
        while not self._finished:
            for number in self.gate.admitted():
                self._add(number)
            if not self._asked:
                break
            self._tell_pass()
            begun = time.monotonic()
            try:
                outputs = self._engine.step()
            except Exception as error:
                raise EngineError(f"vLLM stopped: {type(error).__name__}: {error}", kind="engine_lost", retry=True) from error
            self._finished += [
                self._answer(output) for output in outputs if output.finished and output.request_id in self._asked
            ]
            ended = time.monotonic()
            self.gate.stepped(ended - begun)
            if ended >= deadline or self.gate.awaits:
                break
        finished, self._finished = self._finished, []
        return finished

    def cancel(self, number: int) -> None:
        """Have vLLM drop a call that it was given; one that waits to be let in is computed."""
        for name in [name for name, asked in self._asked.items() if asked.number == number]:
            self._engine.abort_request([name])
            self.gate.finish(self._asked.pop(name).number)
            self._finished.append((number, EngineError("it was dropped", kind="refused")))

    def close(self) -> None:
        """Stop vLLM and free its memory, so that another engine can start in this process."""
        if self._engine is None:
            return
        engine, self._engine, self._asked, self._outside = self._engine, None, {}, {}
        shut_down(engine)

    def _tell_pass(self) -> None:
        """Tell how many tokens the next pass may read at most: of prompts what it holds, of answers one each."""
        now = min(self._unread, self._pass_tokens)
        self._unread -= now
        self.pulse.beat(now + len(self._asked))

    def _rendered(self, number: int, request: Request) -> _Asked:
        if request.score and not self._scores:
            raise EngineError(
                "vLLM can't tell how likely a text is under an adapter on the output head",
                "fold the adapter in (`merge: true`), or write `engine: transformers` in the model's entry",
                kind="refused",
            )
        scored = self._renderer.scored(request) if request.score else None
        ids = scored.ids if scored else self._renderer.ids(request)
        choices = self._renderer.choices(request) if request.choices else {}
        if len(ids) >= self._context:
            raise EngineError(
                f"the prompt has {len(ids)} tokens but the context holds {self._context}, answer included",
                "shorten it, use a model with a longer context, or raise max_model_len",
                kind="overflow",
            )
        return _Asked(number, request, ids, choices, scored)

    def _add(self, number: int) -> None:
        """Give vLLM a call that the gate has let in."""
        asked = self._outside.pop(number)
        request = asked.request
        self._count += 1
        prompt, params = {"type": "token", "prompt_token_ids": asked.ids}, self._params(request, asked.choices)
        name = str(self._count)
        try:
            self._engine.add_request(name, prompt, params, lora_request=self._adapter, priority=request.turn)
        except ValueError as error:
            self.gate.finish(number)
            self._finished.append((number, EngineError(f"vLLM refuses the request: {error}", kind="refused")))
            return
        self._asked[name] = asked
        self._unread += len(asked.ids)

    def _params(self, request: Request, choices: Mapping[str, int]) -> Any:
        if request.score:
            return self._params_type(
                max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=self._final, skip_clone=True
            )
        if choices:
            # Ask for no top-k `logprobs` in this or any other request: where they share a batch with `logprob_token_ids`,
            # vLLM's first model runner overwrites them with (0, -inf). Its second one is right.
            return self._params_type(
                max_tokens=1, temperature=0.0, logprob_token_ids=list(choices.values()), detokenize=False,
                output_kind=self._final, skip_clone=True,
            )  # fmt: skip
        sampling = request.sampling
        return self._params_type(
            temperature=sampling.temperature, max_tokens=sampling.max_tokens, repetition_penalty=sampling.repetition_penalty,
            **(seed_arguments(request, self._draws) if sampling.temperature > 0 else {}),
            stop=list(sampling.stop) or None, stop_token_ids=list(self._renderer.ends(request)) or None,
            detokenize=bool(sampling.stop), output_kind=self._final, skip_clone=True,
        )  # fmt: skip

    def _answer(self, output: RequestOutput) -> tuple[int, Answer]:
        asked = self._asked.pop(output.request_id)
        self.gate.finish(asked.number)
        best: CompletionOutput
        (best,) = output.outputs
        if best.finish_reason not in ("stop", "length"):
            error = EngineError(f"vLLM ended the request early, got {best.finish_reason!r}", kind="refused", retry=True)
            return asked.number, error
        size = len(asked.ids)
        if asked.scored:
            found_here: list[Logprob] = [of[token] for token, of in zip(asked.ids[1:], output.prompt_logprobs[1:], strict=True)]
            return asked.number, scored_completion(asked.scored, [(one.logprob, one.rank == 1) for one in found_here])
        if asked.choices:
            found = {choice: best.logprobs[0][token].logprob for choice, token in asked.choices.items()}
            return asked.number, Completion(max(found, key=found.__getitem__), "stop", size, 1, found)
        ended = best.stop_reason in self._renderer.ends(asked.request)
        said = best.token_ids[:-1] if ended else best.token_ids
        text, thought = self._renderer.answer(asked.request, said, asked.ids, cut=best.finish_reason != "stop")
        if thought is not None and not text:
            return asked.number, unanswered("the model's answer")
        at = Stops.cut(text, asked.request.sampling.stop)
        if at >= 0:
            return asked.number, Completion(text[:at], best.finish_reason, size, len(best.token_ids), thought=thought or None)
        ids = tuple(best.token_ids)
        return asked.number, Completion(text, best.finish_reason, size, len(ids), thought=thought or None, ids=ids)
