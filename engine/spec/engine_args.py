"""The arguments of an engine that a spec may set under `engine_args`, and which of them can change an answer.

Declares; what isn't here can't be set by a spec alone, since some of vLLM's arguments name code to run or files to read, and
others (`dtype`, `tokenizer`, ...) have a key of their own beside `engine_args`. Names and meanings are vLLM's
(https://docs.vllm.ai/en/latest/configuration/engine_args.html); the transformers engine reads the four that say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from caiflow.engine.errors import WrongValue
from caiflow.engine.operator import SPEED, Strict

_CODE = re.compile("auto_map|implementation|kernel|remote|custom")
"""What keys of a model's settings have in their names that may name code."""
_COUNT: dict[str, Any] = {"default": None, "ge": 1, "json_schema_extra": SPEED}


class EngineArgs(Strict):
    """Settings of the engine that runs a model; where one is left out, caiflow or vLLM chooses.

    Anything else that vLLM takes goes under `other_engine_args`, which needs `--trust-remote-code`.
    """

    max_model_len: int | None = Field(**_COUNT)
    """Longest prompt and answer together, in tokens; a row that needs more fails. Read by transformers too."""
    max_num_seqs: int | None = Field(**_COUNT)
    """Most rows computed at once. Read by transformers too."""
    max_num_batched_tokens: int | None = Field(**_COUNT)
    """Most tokens in one engine step. Read by transformers too."""
    device: str | None = Field(default=None, pattern=r"^(auto|cpu|cuda|cuda:\d+)$", json_schema_extra=SPEED)
    """Where the transformers engine computes: auto, cpu, cuda or cuda:N; not for vLLM."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1, json_schema_extra=SPEED)
    """Share of a GPU's memory that the engine may take; by default less where the model's `num_gpus` is below 1."""
    kv_cache_memory_bytes: int | None = Field(**_COUNT)
    """Bytes for keys and values on each device; overrides what the share of memory leaves."""
    num_gpu_blocks_override: int | None = Field(**_COUNT)
    """Blocks of the cache, in place of as many as fit."""
    cpu_offload_gb: float | None = Field(default=None, ge=0, json_schema_extra=SPEED)
    """GiB of weights kept in the machine's memory, per GPU."""
    block_size: int | None = Field(**_COUNT)
    """Tokens in a block of the cache; prompts share whole blocks."""
    enable_prefix_caching: bool | None = Field(default=None, json_schema_extra=SPEED)
    """Compute the shared beginning of prompts once."""
    enable_chunked_prefill: bool | None = Field(default=None, json_schema_extra=SPEED)
    """Read long prompts in pieces, between the steps of others."""
    long_prefill_token_threshold: int | None = Field(default=None, ge=0, json_schema_extra=SPEED)
    """Tokens from which on a prompt counts as long."""
    async_scheduling: bool | None = Field(default=None, json_schema_extra=SPEED)
    """Prepare a step while the one before is computed."""
    enforce_eager: bool | None = Field(default=None, json_schema_extra=SPEED)
    """Record no CUDA graphs: a faster start, slower steps."""
    cudagraph_capture_sizes: tuple[int, ...] | None = Field(default=None, json_schema_extra=SPEED)
    """Batch sizes for which CUDA graphs are recorded."""
    max_cudagraph_capture_size: int | None = Field(default=None, ge=0, json_schema_extra=SPEED)
    """Largest such batch."""
    performance_mode: Literal["balanced", "interactivity", "throughput"] | None = Field(default=None, json_schema_extra=SPEED)
    """What vLLM's own defaults are tuned for."""
    tensor_parallel_size: int | None = Field(**_COUNT)
    """GPUs among which each layer is split; by default the model's `num_gpus`, shared out over the groups of a pipeline."""
    pipeline_parallel_size: int | None = Field(**_COUNT)
    """Groups of GPUs among which the layers are shared out."""
    enable_expert_parallel: bool | None = Field(default=None, json_schema_extra=SPEED)
    """Share out the experts of a mixture-of-experts model in place of splitting each."""
    distributed_executor_backend: Literal["mp", "ray", "uni"] | None = Field(default=None, json_schema_extra=SPEED)
    """How vLLM starts its workers where it has several."""
    disable_custom_all_reduce: bool | None = Field(default=None, json_schema_extra=SPEED)
    """Add up among GPUs by NCCL alone."""
    max_parallel_loading_workers: int | None = Field(**_COUNT)
    """Workers that load weights at once."""
    safetensors_load_strategy: Literal["lazy", "eager", "prefetch"] | None = Field(default=None, json_schema_extra=SPEED)
    """How the files of weights are read."""
    max_lora_rank: int | None = Field(**_COUNT)
    """Largest rank of an adapter; by default what the adapter needs."""
    fully_sharded_loras: bool | None = Field(default=None, json_schema_extra=SPEED)
    """Split an adapter's matrices among the GPUs wholly."""
    disable_log_stats: bool | None = Field(default=None, json_schema_extra=SPEED)
    """Log no figures of the engine's own."""
    attention_backend: str | None = Field(default=None, pattern=r"^[A-Z][A-Z0-9_]*$")
    """vLLM's kernels for attention, such as FLASH_ATTN, by its name; can change answers."""
    disable_cascade_attn: bool | None = None
    """Compute no attention over a shared beginning apart; can change answers."""
    disable_sliding_window: bool | None = None
    """Attend within the sliding window's length alone; changes answers."""
    kv_cache_dtype: str | None = Field(default=None, pattern=r"^[a-z0-9_]+$")
    """Number format of cached keys and values, such as fp8; changes answers."""
    hf_overrides: dict[str, Any] | None = None
    """Values laid over the model's config.json, such as `rope_scaling`; changes answers."""
    lora_dtype: Literal["auto", "float16", "bfloat16", "float32"] | None = None
    """Number format of an adapter; can change answers."""
    moe_backend: str | None = Field(default=None, pattern=r"^[a-z0-9_]+$")
    """vLLM's kernels for mixtures of experts; can change answers."""
    tokenizer_mode: Literal["auto", "hf", "mistral"] | None = None
    """Which library tokenises; changes answers."""

    @field_validator("hf_overrides")
    @classmethod
    def _names_no_code(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if found := next(_naming_code(value), ""):
            raise WrongValue(f"`{found}` may name code to run", "set it under `other_engine_args`, with --trust-remote-code")
        return value


def _naming_code(value: Any) -> Iterator[str]:
    """Yield the keys of a model's settings, however deep, that name classes or kernels of a repository."""
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield from (str(key) for key in value if _CODE.search(str(key)))
    for one in inner:
        yield from _naming_code(one)


def counted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of an engine's arguments that can change its answers: all but the ones declared to be about speed."""
    fields = EngineArgs.model_fields
    return {name: value for name, value in arguments.items() if name not in fields or fields[name].json_schema_extra != SPEED}
