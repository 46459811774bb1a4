"""Which engine a model runs on here, and how it is loaded.

Owns the choice between the engines and what each is started with; files.py loads what they need. `ModelSource.options` may hold
`num_gpus`, `engine_args` (vLLM's own names; the transformers engine uses those named in `_load_transformers` and ignores the
others, which only affect speed) and what openai.py names for served models. Imports torch and the libraries only inside the
functions that load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Engine, only_vllm_gives
from caiflow.engine.llm.files import classifier, load_model, load_renderer
from caiflow.engine.llm.gguf import unpack
from caiflow.engine.machine import cores, pip_command

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource

EngineKind = Literal["transformers", "vllm", "openai"]
_CPU_ROWS, _GPU_ROWS = 128, 64
_CPU_PREFILL_TOKENS, _GPU_PREFILL_TOKENS = 8192, 16384
_LONGEST_CONTEXT = 1 << 20
_WORTH_SPREADING = 50_000_000
"""Parameters from which a token takes so long that a second core helps more than the rows' workers miss it."""
_SPREAD = 4
"""Cores up to which such a model is spread, whatever share of them its process was given."""


def choose_kind(source: ModelSource) -> EngineKind:
    """Return the engine for `source`: what it names, or for `auto` vLLM where it is installed and a CUDA GPU is here.

    On a CPU `auto` means transformers: vLLM's start takes longer there than most CPU-sized runs.

    Raises:
        EngineError: the name is unknown, or vLLM is asked for but not installed.
    """
    if source.engine == "auto":
        if source.options.get("base_url"):
            return "openai"
        return "vllm" if find_spec("vllm") and _has_cuda() and source.options.get("num_gpus", 1) != 0 else "transformers"
    if source.engine not in ("transformers", "vllm", "openai"):
        raise EngineError(f"unknown engine, got {source.engine!r}", "use auto, transformers, vllm or openai", kind="load")
    if source.engine == "vllm" and not find_spec("vllm"):
        raise EngineError(
            "vLLM is not installed",
            f"{pip_command('vllm')} on a machine with a GPU, or use engine: transformers",
            kind="load",
        )
    return source.engine  # type: ignore[return-value]


def load_engine(source: ModelSource) -> Engine:
    """Load `source` and return its engine, ready for requests.

    Raises:
        EngineError: kind `load`: the files are missing or unreadable, or memory is short.
    """
    kind = choose_kind(source)
    unpack(source)
    if kind != "vllm" and (asked := only_vllm_gives(source.exact, source.draws)):
        told = " and ".join(f"`{name}: {value}`" for name, value in asked.items())
        raise EngineError(
            f"{source.path} asks for {told}, which vLLM alone gives, and would run on {kind} here",
            f"leave it out, or run where vLLM does: engine: vllm, or a machine with a GPU and vLLM ({pip_command('vllm')})",
            kind="load",
        )
    if kind == "openai":
        from caiflow.engine.llm.served.openai import load_openai

        return load_openai(source)
    from caiflow.engine.llm.local.lean import import_lean

    import_lean(["transformers" if kind == "vllm" else "caiflow.engine.llm.local.transformers"])
    if classifier(source):
        from caiflow.engine.llm.local.classifying import load_classifier

        return load_classifier(source, _device(source))
    if kind == "vllm":
        from caiflow.engine.llm.vllm.start import load_vllm

        return load_vllm(source)
    return _load_transformers(source)


def _load_transformers(source: ModelSource) -> Engine:
    """Load with transformers; uses max_num_seqs, max_num_batched_tokens, max_model_len and device of `engine_args`."""
    from caiflow.engine.llm.local.attention import share_keys
    from caiflow.engine.llm.local.transformers import TransformersEngine

    args: Mapping[str, Any] = source.options.get("engine_args") or {}
    model = load_model(source, _device(source))
    on_cpu = model.device.type == "cpu"
    if on_cpu:
        share_keys(model)
        _spread(model, source)
    renderer = load_renderer(source)
    return TransformersEngine(
        model,
        renderer,
        capacity=int(args.get("max_num_seqs") or (_CPU_ROWS if on_cpu else _GPU_ROWS)),
        prefill_tokens=int(args.get("max_num_batched_tokens") or (_CPU_PREFILL_TOKENS if on_cpu else _GPU_PREFILL_TOKENS)),
        context=int(args.get("max_model_len") or _context(model, renderer.tokenizer)),
    )


def _spread(model: Any, source: ModelSource) -> None:
    """Let a large model use more cores than its process was given, where those are few and the spec doesn't say how many."""
    import torch

    if model.num_parameters() >= _WORTH_SPREADING and not source.options.get("num_cpus"):
        torch.set_num_threads(max(torch.get_num_threads(), min(cores(), _SPREAD)))


def _device(source: ModelSource) -> str:
    args: Mapping[str, Any] = source.options.get("engine_args") or {}
    device = str(args.get("device") or "auto")
    return "cpu" if device == "auto" and source.options.get("num_gpus") == 0 else device


def _context(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config(decoder=True)
    named = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return min(int(named or _LONGEST_CONTEXT), int(tokenizer.model_max_length or _LONGEST_CONTEXT), _LONGEST_CONTEXT)


def _has_cuda() -> bool:
    """Return whether a CUDA GPU is here, without importing torch where the driver's own files tell."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists() and os.name == "posix":
        return False
    import torch

    return torch.cuda.is_available()
