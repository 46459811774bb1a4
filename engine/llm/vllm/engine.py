"""The engine that runs a model with vLLM inside this process, on GPUs or on a CPU.

Owns vLLM's start, its environment and the translation of requests and answers. Prompts go in as token ids from the same
renderer as everywhere else and answers are decoded by it, once, at the end; vLLM's own text only finds stop sequences. Uses
the LLM engine's own add-and-step loop, without a server or a process between. Imported on workers only.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Completion, ModelSource, Request
from caiflow.engine.llm.files import load_error, load_renderer
from caiflow.engine.llm.render import Rendered, Renderer, scored_completion
from caiflow.engine.llm.stops import Stops
from caiflow.engine.llm.vllm.seeds import PROCESSORS, seed_arguments
from caiflow.engine.suggest import nearest

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process: no copy of every request and answer
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines on one machine must not bind the same cores
}
_CPU_ROWS = 128
_CPU_BLOCK = 32
"""Tokens per cache block on a CPU: vLLM's 128 there would keep shorter prompts from sharing anything."""
_CPU_KV_BYTES = (1 << 30, 16 << 30)
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_HINTS = {
    "max seq len": "lower max_model_len, or raise gpu_memory_utilization (GPU) or VLLM_CPU_KVCACHE_SPACE (CPU, GiB)",
    "no available memory": "the weights leave too little for the cache: raise gpu_memory_utilization or use a smaller model",
    "free memory": "something else holds the device's memory: free it, or lower gpu_memory_utilization",
    "out of memory": "use a smaller model, dtype or max_num_seqs, quantization, or more GPUs (num_gpus)",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A request under way: the caller's number for it, its prompt's ids, and what its answer is read with."""

    number: int
    ids: Sequence[int]
    choices: Mapping[str, int]
    stops: tuple[str, ...]
    scored: Rendered | None


class VLLMEngine:
    """An Engine (see base.py) around a started vLLM `LLMEngine`; with `adapter`, every request goes through that LoRA."""

    def __init__(self, engine: Any, renderer: Renderer, adapter: Any = None) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.capacity = int(engine.vllm_config.scheduler_config.max_num_seqs)
        self._context = int(engine.vllm_config.model_config.max_model_len)
        self._engine = engine
        self._renderer = renderer
        self._adapter = adapter
        self._params_type, self._final = SamplingParams, RequestOutputKind.FINAL_ONLY
        self._asked: dict[str, _Asked] = {}
        self._finished: list[tuple[int, Answer]] = []
        self._count = 0

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Render and hand over requests; one that can't be rendered or doesn't fit finishes with its error."""
        for number, request in requests:
            try:
                self._add(number, request)
            except EngineError as error:
                self._finished.append((number, error))
            except ValueError as error:
                self._finished.append((number, EngineError(f"vLLM refuses the request: {error}", kind="refused")))

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Run steps of vLLM's scheduler until something finishes or `timeout_s` has passed.

        Raises:
            EngineError: kind `engine_lost`: vLLM itself failed; none of its requests will be answered.
        """
        deadline = time.monotonic() + timeout_s
        while self._asked and not self._finished:
            try:
                outputs = self._engine.step()
            except Exception as error:
                raise EngineError(f"vLLM stopped: {type(error).__name__}: {error}", kind="engine_lost", retry=True) from error
            self._finished += [self._answer(output) for output in outputs if output.finished]
            if time.monotonic() >= deadline:
                break
        finished, self._finished = self._finished, []
        return finished

    def close(self) -> None:
        """Stop vLLM and free its memory, so that another engine can start in this process."""
        if self._engine is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        self._engine, self._asked = None, {}
        gc.collect()
        cleanup_dist_env_and_memory()

    def _add(self, number: int, request: Request) -> None:
        scored = self._renderer.scored(request) if request.score else None
        ids = scored.ids if scored else self._renderer.ids(request)
        choices = self._renderer.choices(request) if request.choices else {}
        if len(ids) >= self._context:
            raise EngineError(
                f"the prompt has {len(ids)} tokens but the context holds {self._context}, answer included",
                "shorten it, use a model with a longer context, or raise max_model_len",
                kind="overflow",
            )
        self._count += 1
        prompt = {"type": "token", "prompt_token_ids": ids}
        name = str(self._count)
        self._engine.add_request(name, prompt, self._params(request, choices), lora_request=self._adapter)
        self._asked[name] = _Asked(number, ids, choices, request.sampling.stop, scored)

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
            extra_args=seed_arguments(request) if sampling.temperature > 0 else None,
            stop=list(sampling.stop) or None, detokenize=bool(sampling.stop), output_kind=self._final, skip_clone=True,
        )  # fmt: skip

    def _answer(self, output: Any) -> tuple[int, Answer]:
        asked = self._asked.pop(output.request_id)
        (best,) = output.outputs
        if best.finish_reason not in ("stop", "length"):
            error = EngineError(f"vLLM ended the request early, got {best.finish_reason!r}", kind="refused", retry=True)
            return asked.number, error
        size = len(asked.ids)
        if asked.scored:
            found_here = [of[token] for token, of in zip(asked.ids[1:], output.prompt_logprobs[1:], strict=True)]
            return asked.number, scored_completion(asked.scored, [(one.logprob, one.rank == 1) for one in found_here])
        if asked.choices:
            found = {choice: best.logprobs[0][token].logprob for choice, token in asked.choices.items()}
            return asked.number, Completion(max(found, key=found.__getitem__), "stop", size, 1, found)
        text = self._renderer.decode(best.token_ids, asked.ids)
        at = Stops.cut(text, asked.stops)
        return asked.number, Completion(text[:at] if at >= 0 else text, best.finish_reason, size, len(best.token_ids))


def load_vllm(source: ModelSource) -> VLLMEngine:
    """Start vLLM for `source`; `options["engine_args"]` goes to vLLM under its own names and wins over what is chosen here.

    Which logits processor draws is no choice of a spec's: it goes by the model runner that vLLM will use.

    Raises:
        EngineError: kind `load`: an argument vLLM doesn't know, files missing or unreadable, or memory short.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    given = dict(source.options.get("engine_args") or {})
    _check_names(given, [field.name for field in dataclasses.fields(EngineArgs)])
    arguments = {**_defaults(source, on_cpu=current_platform.is_cpu()), **given}
    if current_platform.is_cpu() and arguments["enforce_eager"]:
        _forgo_compiling()
    try:
        config = EngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
        config.model_config.logits_processors = [PROCESSORS[2 if config.use_v2_model_runner else 1]]
        engine = LLMEngine.from_vllm_config(config, disable_log_stats=arguments["disable_log_stats"])
    except Exception as error:
        raise _explained(source.path, error) from error
    return VLLMEngine(engine, load_renderer(source), _adapter(source))


def _defaults(source: ModelSource, *, on_cpu: bool) -> dict[str, Any]:
    """Return vLLM's arguments for `source` and this kind of machine."""
    chosen: dict[str, Any] = {
        "model": source.path, "revision": source.revision, "tokenizer": source.tokenizer, "dtype": source.dtype,
        "quantization": source.quantization, "trust_remote_code": source.trust_remote_code,
        "enable_prefix_caching": True, "disable_log_stats": True,
    }  # fmt: skip
    if source.adapter:
        chosen |= {"enable_lora": True, **_adapter_shape(source.adapter)}
    gpus = int(source.options.get("num_gpus") or 0)
    if gpus > 1:
        chosen["tensor_parallel_size"] = gpus
    if on_cpu:
        chosen |= {"enforce_eager": True, "block_size": _CPU_BLOCK, "max_num_seqs": _CPU_ROWS}
        chosen["dtype"] = "float32" if source.dtype == "auto" else source.dtype
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            chosen["kv_cache_memory_bytes"] = _cpu_kv_bytes()
    return chosen


def _forgo_compiling() -> None:
    """Keep torch from compiling in this process: the first request for log-probabilities would wait seconds for it."""
    import torch._dynamo

    torch._dynamo.config.disable = True


def _cpu_kv_bytes() -> int:
    """Return an eighth of the memory that is free now, between 1 and 16 GiB: other engines and trainers live here too."""
    low, high = _CPU_KV_BYTES
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(low, min(high, free // 8))


def _adapter(source: ModelSource) -> Any:
    if not source.adapter:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, source.adapter)


def _adapter_shape(adapter: str) -> dict[str, Any]:
    """Return vLLM's arguments for an adapter: the smallest rank it knows that holds the adapter's, and the layers it is for.

    Unless told the layers, vLLM wraps the output head too, and then can't tell how likely a prompt is on a CPU.
    """
    try:
        config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        rank, layers = int(config["r"]), config.get("target_modules")
    except (OSError, ValueError, KeyError) as error:
        raise load_error(f"the adapter {adapter}", error) from error
    shape: dict[str, Any] = {"max_lora_rank": next((known for known in _LORA_RANKS if known >= rank), rank)}
    plain = isinstance(layers, list) and all("." not in layer for layer in layers)  # neither a pattern nor whole paths
    return shape | ({"lora_target_modules": layers} if plain else {})


def _check_names(given: Mapping[str, Any], known: Sequence[str]) -> None:
    if given.get("speculative_config"):  # several rows a request then, which the second runner's draws would mistake
        raise EngineError(
            "vLLM can't speculate and draw by seeds, got speculative_config", "leave it out of engine_args", kind="load"
        )
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else "see vLLM's engine arguments"
            raise EngineError(f"vLLM has no engine argument of that name, got {name!r}", hint, kind="load")


def _explained(what: str, error: Exception) -> EngineError:
    """Return the error of a failed start with what to do about it."""
    text = str(error)
    for sign, hint in _HINTS.items():
        if sign in text.lower():
            line = next((line for line in text.splitlines() if sign in line.lower()), text)
            return EngineError(f"vLLM can't start with {what}: {line.strip()[:400]}", hint, kind="load")
    return load_error(f"{what} into vLLM", error)
