"""How vLLM is started for a model: its environment, its arguments, and who draws.

Owns what is chosen for this machine where a spec says nothing, and refuses what this vLLM can't do here. engine.py asks the
started vLLM, failures.py says why a start failed. Imported on workers only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import EngineError, nearest
from caiflow.engine.llm.base import Draws, ModelSource
from caiflow.engine.llm.files import load_error, load_renderer
from caiflow.engine.llm.model_files import HEAD, adapted_layers
from caiflow.engine.llm.vllm.engine import VLLMEngine
from caiflow.engine.llm.vllm.failures import Printed, start_error
from caiflow.engine.llm.vllm.seeds import PROCESSORS

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process: no copy of every request and answer
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines on one machine must not bind the same cores
}
_EXACT, _EXACT_FROM = "VLLM_BATCH_INVARIANT", (8, 0)
_GPU_MEMORY = 0.92
"""The part of a GPU's memory that vLLM takes by default, of which a share of a GPU has its share."""
_CPU_ROWS = 128
_CPU_BLOCK = 32
"""Tokens per cache block on a CPU: vLLM's 128 there would keep shorter prompts from sharing anything."""
_CPU_KV_BYTES = (1 << 30, 16 << 30)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def load_vllm(source: ModelSource) -> VLLMEngine:
    """Return the engine that answers by vLLM.

    Raises:
        EngineError: as `start_vllm` does.
    """
    engine = start_vllm(source)
    scores = not source.adapter or HEAD not in adapted_layers(Path(source.adapter))
    return VLLMEngine(engine, load_renderer(source), _adapter(source), source.draws, scores=scores)


def start_vllm(source: ModelSource) -> LLMEngine:
    """Start vLLM for `source`; `options["engine_args"]` goes to vLLM under its own names and wins over what is chosen here.

    Which logits processor draws goes by the model runner that vLLM will use.

    Raises:
        EngineError: kind `load`: an argument vLLM doesn't know, files missing or unreadable, memory short, or something asked
            for that this vLLM doesn't have on this device.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if source.exact:
        _be_exact(source.path)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    given = dict(source.options.get("engine_args") or {})
    _check_names(given, [field.name for field in dataclasses.fields(EngineArgs)])
    arguments = {**_defaults(source, on_cpu=current_platform.is_cpu()), **given}
    if current_platform.is_cpu() and arguments["enforce_eager"]:
        _forgo_compiling()
    printed = Printed()
    try:
        with printed:
            config = EngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
            config.model_config.logits_processors = _processors(source.draws, 2 if config.use_v2_model_runner else 1)
            return LLMEngine.from_vllm_config(config, disable_log_stats=arguments["disable_log_stats"])
    except EngineError:
        raise
    except Exception as error:
        raise start_error(source.path, error, printed.text()) from error


def _be_exact(what: str) -> None:
    """Switch vLLM's batch-invariant mode on in this process, for good: its kernels read the switch as they are imported.

    Raises:
        EngineError: kind `load`: this device can't, or vLLM has started without it here.
    """
    started = os.environ.get(_EXACT) != "1" and "vllm.engine.arg_utils" in sys.modules
    from vllm.platforms import current_platform

    found = current_platform.get_device_capability() if current_platform.is_cuda() else None
    if found is None or (found.major, found.minor) < _EXACT_FROM:
        here = f"compute capability {found.as_version_str()}" if found else f"a device of kind {current_platform.device_type}"
        raise EngineError(
            f"{what} asks for `exact: true`, vLLM's batch-invariant mode, which isn't to be had here, got {here}",
            "run it on an NVIDIA GPU of compute capability 8.0 or higher, or leave `exact` out",
            kind="load",
        )
    if started:
        raise EngineError(f"{what} asks for `exact: true`, but vLLM ran in this process without", "start another", kind="load")
    os.environ[_EXACT] = "1"


def _processors(draws: Draws, runner: int) -> list[str] | None:
    """Return the logits processors that draw on this model runner; None where vLLM draws itself.

    Raises:
        EngineError: kind `load`: vLLM is to draw on its first runner, whose draws aren't its second's.
    """
    if draws == "caiflow":
        return [PROCESSORS[runner]]
    if runner == 1:
        raise EngineError(
            "`draws: vllm` means the draws of vLLM's second model runner, and its first one serves here",
            "leave `draws` out, or run on a GPU, where the second one serves",
            kind="load",
        )
    return None


def _defaults(source: ModelSource, *, on_cpu: bool) -> dict[str, Any]:
    """Return vLLM's arguments for `source` and this kind of machine."""
    chosen: dict[str, Any] = {
        "model": source.path, "revision": source.revision, "tokenizer": source.tokenizer, "dtype": source.dtype,
        "quantization": source.quantization, "trust_remote_code": source.trust_remote_code,
        "enable_prefix_caching": not source.exact,  # how much of a prompt is in the cache goes by what was asked before
        "disable_log_stats": True, "scheduling_policy": "priority",
    }  # fmt: skip
    if source.adapter:
        chosen |= {"enable_lora": True, **_adapter_shape(source.adapter)}
    gpus = float(source.options.get("num_gpus") or 0)
    if gpus > 1:
        stages = (source.options.get("engine_args") or {}).get("pipeline_parallel_size", 1)
        chosen["tensor_parallel_size"] = max(1, int(gpus) // stages)
    elif 0 < gpus < 1 and not on_cpu:  # others have the rest: vLLM would refuse to start beside them
        chosen["gpu_memory_utilization"] = _GPU_MEMORY * gpus
    if on_cpu:
        chosen |= {"enforce_eager": True, "block_size": _CPU_BLOCK, "max_num_seqs": _CPU_ROWS}
        chosen["dtype"] = "float32" if source.dtype == "auto" else source.dtype
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            chosen["kv_cache_memory_bytes"] = _cpu_kv_bytes()
    return chosen


def _forgo_compiling() -> None:
    """Keep torch from compiling, in vLLM's processes too: the first request for log-probabilities would wait seconds for it."""
    import torch._dynamo

    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
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


def rank_for(rank: int) -> int:
    """Return the least `max_lora_rank` that vLLM knows and that an adapter's rank fits into."""
    return next((known for known in LORA_RANKS if known >= rank), rank)


def _adapter_shape(adapter: str) -> dict[str, Any]:
    """Return vLLM's arguments for an adapter: the smallest rank it knows that holds the adapter's, and the layers it is for.

    Unless told the layers, vLLM wraps the output head too, and then can't tell how likely a prompt is on a CPU.
    """
    try:
        config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        rank = int(config["r"])
    except (OSError, ValueError, KeyError) as error:
        raise load_error(f"the adapter {adapter}", error) from error
    shape: dict[str, Any] = {"max_lora_rank": rank_for(rank)}
    layers = sorted(adapted_layers(Path(adapter)))
    return shape | ({"lora_target_modules": layers} if layers else {})


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
