"""Serving a trained model: the command line of vLLM's or transformers' own OpenAI-compatible server for a model's folder.

The chat template is the one saved with the model, as in training. Starts nothing itself; the command replaces its process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from caiflow.engine.errors import PlanError
from caiflow.engine.llm.files import adapter_base

Server = Literal["auto", "vllm", "transformers"]

SERVER_LIBRARIES = ("fastapi", "uvicorn", "openai")
"""What transformers' own server imports beside transformers; the extra `serve` has them."""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """What to execute and in which folder; `environment` gives way to what is set already."""

    arguments: tuple[str, ...]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)


def server_command(
    model: Path, *, server: Server = "auto", host: str = "localhost", port: int = 8000, extra: Sequence[str] = ()
) -> ServerCommand:
    """Return the command that serves the folder `model` under its own name; auto takes vLLM where it is installed.

    Raises:
        PlanError: the server isn't installed, or can't serve this model.
    """
    chosen = server if server != "auto" else "vllm" if find_spec("vllm") else "transformers"
    where = ("--host", host, "--port", str(port), *extra)
    if chosen == "vllm":
        return _vllm(model, where)
    if missing := missing_libraries():
        raise PlanError(f"serve: transformers' server needs {', '.join(missing)}; pip install 'caiflow[serve]'")
    if adapter_base(model):
        raise PlanError(f"serve: {model} is an adapter, which transformers' server can't load; train with `merge: true`")
    program = "from transformers.cli.transformers import main; main()"
    # the server knows a model by the path it was given, so that must be the name that clients use
    return ServerCommand((sys.executable, "-c", program, "serve", model.name, *where), model.parent)


def missing_libraries() -> list[str]:
    """Return which of the libraries of transformers' server aren't installed."""
    return [name for name in SERVER_LIBRARIES if not find_spec(name)]


def make_hub_cache() -> None:
    """Make the folder of the hub's cache, without which transformers' server can't list its models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    with suppress(OSError):
        Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)


def _vllm(model: Path, where: Sequence[str]) -> ServerCommand:
    if not find_spec("vllm"):
        raise PlanError("serve: vLLM isn't installed; pip install 'caiflow[vllm]', or use --engine transformers")
    base, _ = adapter_base(model) or (None, None)
    loaded = ("--model", base or str(model), "--served-model-name", model.name if base is None else base)
    adapter = () if base is None else ("--enable-lora", "--lora-modules", f"{model.name}={model}")
    on_cpu = not any(Path("/proc/driver/nvidia/gpus").glob("*"))
    slow = ("--dtype", "float32", "--enforce-eager") if on_cpu else ()
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"} if on_cpu else {}
    program = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    return ServerCommand((*program, *loaded, *adapter, *slow, *where), model.parent, environment)
