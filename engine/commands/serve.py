"""`caiflow serve`: a run's model at an OpenAI-compatible endpoint, by vLLM's or transformers' own server.

The chat template is the one saved with the model, as in training. The server takes the place of the command's process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from caiflow.engine.commands.parser import named_run
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import CaiflowError, PlanError
from caiflow.engine.llm.files import adapter_base
from caiflow.engine.machine import pip_command

EXAMPLES = """\
  caiflow serve last rl_cai
  caiflow serve last rl_cai --port 8080 --engine transformers
  caiflow serve last rl_cai -- --max-model-len 4096          # the server's own options
  curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "rl_cai", "messages": [{"role": "user", "content": "Hello"}]}'
"""

Server = Literal["auto", "vllm", "transformers"]

SERVER_LIBRARIES = ("fastapi", "uvicorn", "openai")
"""What transformers' own server imports beside transformers; the extra `serve` has them."""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """What to execute and in which folder; `environment` gives way to what is set already."""

    arguments: tuple[str, ...]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `serve`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("step", metavar="STEP", help="a step that trained a model")
    parser.add_argument("extra", metavar="-- OPTION", nargs="*", help="options for the server itself")
    parser.add_argument("--engine", choices=("auto", "vllm", "transformers"), default="auto", help="whose server")
    parser.add_argument("--host", default="localhost", help="address to listen on (default localhost)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000)")


def execute(args: Namespace) -> int:
    """Become the server; never returns where that works."""
    from caiflow.engine.lookback.history import output_kind, step_dir

    path = step_dir(named_run(args.run), args.step)
    if (kind := output_kind(path)) != "model":
        raise CaiflowError(f"{args.step}: its output is {kind}, not a model", "name a step that trains one")
    command = server_command(path.absolute(), server=args.engine, host=args.host, port=args.port, extra=args.extra)
    url = f"http://{args.host}:{args.port}/v1"
    say(f"loading {args.step}, to be served at {url}", file=sys.stderr, flush=True)
    announcing = ("-m", "caiflow.engine.commands.announce", str(os.getpid()), f"{url}/models", f"serving {args.step} at {url}")
    subprocess.Popen([sys.executable, *announcing], stdin=subprocess.DEVNULL)
    os.chdir(command.folder)
    os.execve(command.arguments[0], list(command.arguments), {**command.environment, **os.environ})


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
        raise PlanError(f"serve: transformers' server needs {', '.join(missing)}", pip_command("serve"))
    if adapter_base(model):
        raise PlanError(f"serve: {model} is an adapter, which transformers' server can't load", "train with `merge: true`")
    program = (sys.executable, "-m", "caiflow.engine.llm.local.serving")
    folder = str(model.resolve())  # an `@` in a path, as a step's link has it, would be a revision to the server
    return ServerCommand((*program, folder, model.name, *where), model.parent)


def missing_libraries() -> list[str]:
    """Return which of the libraries of transformers' server aren't installed."""
    return [name for name in SERVER_LIBRARIES if not find_spec(name)]


def _vllm(model: Path, where: Sequence[str]) -> ServerCommand:
    if not find_spec("vllm"):
        raise PlanError("serve: vLLM isn't installed", f"{pip_command('vllm')}, or use --engine transformers")
    base, _ = adapter_base(model) or (None, None)
    loaded = ("--model", base or str(model), "--served-model-name", model.name if base is None else base)
    adapter = () if base is None else ("--enable-lora", "--lora-modules", f"{model.name}={model}")
    on_cpu = not any(Path("/proc/driver/nvidia/gpus").glob("*"))
    slow = ("--dtype", "float32", "--enforce-eager") if on_cpu else ()
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"} if on_cpu else {}
    program = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    return ServerCommand((*program, *loaded, *adapter, *slow, *where), model.parent, environment)
