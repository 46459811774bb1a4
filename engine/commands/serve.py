"""`caiflow serve`: models of a run at an OpenAI-compatible endpoint, on the engine that a run would take.

On transformers caiflow serves by itself, several models side by side; vLLM's own server takes the place of the command's
process. The chat template is the one saved with the model, as in training.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import named_run, open_store, port
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import CaiflowError, PlanError
from caiflow.engine.machine import gpus, pip_command

if TYPE_CHECKING:
    from socket import socket

    from caiflow.engine.llm.base import ModelSource

EXAMPLES = """\
  caiflow serve last rl_cai
  caiflow serve last rl_cai --also sl_cai --also base        # before and after, side by side
  caiflow serve last rl_cai --port 8080 --engine transformers
  caiflow serve last rl_cai --engine vllm -- --max-model-len 4096   # vLLM's own options
  curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "rl_cai", "messages": [{"role": "user", "content": "Hello"}]}'
"""

SERVER_LIBRARIES = ("uvicorn",)
"""What serving without vLLM needs; the extra `serve` has it."""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """What to execute; `environment` gives way to what is set already."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `serve`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("step", metavar="STEP", help="a step that trained a model, or a name under `models`")
    parser.add_argument("extra", metavar="-- OPTION", nargs="*", help="options for vLLM's server itself")
    parser.add_argument("--also", metavar="STEP", action="append", default=[], help="serve this one, too; may be repeated")
    parser.add_argument(
        "--engine", choices=("auto", "vllm", "transformers"), default="auto", help="what computes (default: as in a run)"
    )
    parser.add_argument("--host", default="localhost", help="address to listen on (default localhost)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on (default 8000)")


def execute(args: Namespace) -> int:
    """Serve until it is ended; where vLLM does, become its server."""
    from caiflow.engine.lookback.models import run_models

    run_dir = named_run(args.run)
    sources = run_models(run_dir, [args.step, *args.also], open_store())
    url, names = f"http://{args.host}:{args.port}/v1", ", ".join(sources)
    engine = chosen_engine(sources, args.engine)
    if engine == "transformers" and (missing := missing_libraries()):
        raise PlanError(f"serve: serving needs {', '.join(missing)}", pip_command("serve"))
    if engine == "transformers" and args.extra:
        raise PlanError(f"serve: {args.extra[0]} is an option of vLLM's server", "leave it out, or add --engine vllm")
    _refuse_taken(args.host, args.port)
    where = ("--host", args.host, "--port", str(args.port), *args.extra)
    command = vllm_command(sources, where) if engine == "vllm" else None
    say(f"loading {names} on {engine}, to be served at {url}", file=sys.stderr, flush=True)
    if command is None:
        _serve(sources, args.host, args.port, f"serving {names} at {url}")
    else:
        _become(command, f"{url}/models", f"serving {names} at {url}")
    return 0


def _refuse_taken(host: str, port: int) -> None:
    """Raise CaiflowError where nothing can listen there: to find that out once models are loaded would be late."""
    import socket

    def wrong(family: int, address: Any) -> OSError | None:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
        except OSError as error:
            return error
        return None

    try:
        found = [wrong(family, address) for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:  # no such host
        found = [error]
    errors = list(filter(None, found))
    taken = [error for error in errors if error.errno == errno.EADDRINUSE]
    if taken or len(errors) == len(found):  # one of a name's addresses may not be there, as ::1 where IPv6 is off
        why = (taken or errors)[0]
        hint = "give another --port, or end what listens there; --host must be an address of this machine"
        raise CaiflowError(f"serve: can't listen at {host}:{port}: {why.strerror}", hint) from why


def _become(command: ServerCommand, url: str, told: str) -> None:
    announcing = ("-m", "caiflow.engine.commands.announce", str(os.getpid()), url, told)
    subprocess.Popen([sys.executable, *announcing], stdin=subprocess.DEVNULL)
    os.execve(command.arguments[0], list(command.arguments), {**command.environment, **os.environ})


def chosen_engine(sources: Mapping[str, ModelSource], asked: str) -> str:
    """Return `vllm` or `transformers`: what is asked for, by default the engine that a run would take.

    Raises:
        PlanError: a model is behind a server already.
    """
    from caiflow.engine.llm.load import choose_kind

    kinds = {name: choose_kind(source) for name, source in sources.items()}
    if served := [name for name, kind in kinds.items() if kind == "openai"]:
        raise PlanError(f"serve: {served[0]} is behind a server already", "ask that one")
    return asked if asked != "auto" else "vllm" if "vllm" in kinds.values() else "transformers"


def missing_libraries() -> list[str]:
    """Return which of the libraries that serving without vLLM needs aren't installed."""
    return [name for name in SERVER_LIBRARIES if not find_spec(name)]


def _serve(sources: Mapping[str, ModelSource], host: str, port: int, told: str) -> None:
    import uvicorn

    from caiflow.engine.llm.host import EngineHost
    from caiflow.engine.llm.load import load_engine
    from caiflow.engine.llm.local.serving import Serving

    class Server(uvicorn.Server):
        """Says that it is there once it listens."""

        async def startup(self, sockets: list[socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                say(told, file=sys.stderr, flush=True)

    here = {name: source._replace(engine="transformers") for name, source in sources.items()}
    hosts = {name: EngineHost(partial(load_engine, source)) for name, source in here.items()}
    try:
        Server(uvicorn.Config(Serving(hosts), host=host, port=port, lifespan="on", log_level="warning")).run()
    finally:
        for engine in hosts.values():
            engine.close()


def vllm_command(sources: Mapping[str, ModelSource], where: Sequence[str]) -> ServerCommand:
    """Return the command of vLLM's server for one model, or for a model and adapters over it.

    Raises:
        PlanError: vLLM isn't installed, or the models have different weights.
    """
    from caiflow.engine.llm.gguf import unpack

    if not find_spec("vllm"):
        raise PlanError("serve: vLLM isn't installed", f"{pip_command('vllm')}, or use --engine transformers")
    if len(weights := {(source.path, source.revision) for source in sources.values()}) > 1:
        names = ", ".join(sources)
        raise PlanError(
            f"serve: {names} have {len(weights)} sets of weights", "vLLM's server holds one; use --engine transformers"
        )
    unpack(next(iter(sources.values())))
    adapters = {name: source.adapter for name, source in sources.items() if source.adapter}
    plain = [name for name in sources if name not in adapters]
    path, revision = weights.pop()
    loaded = ["--model", path, "--served-model-name", *(plain or [path]), *(("--revision", revision) if revision else ())]
    if adapters:
        loaded += [
            "--enable-lora",
            "--max-lora-rank",
            str(_rank(adapters.values())),
            "--lora-modules",
            *(f"{name}={at}" for name, at in adapters.items()),
        ]
    on_cpu = not gpus()
    slow = ("--dtype", "float32", "--enforce-eager") if on_cpu else ()
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"} if on_cpu else {}
    program = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    return ServerCommand((*program, *loaded, *slow, *where), environment)


def _rank(adapters: Iterable[str]) -> int:
    """Return the least rank that vLLM takes and that all adapters fit into."""
    from caiflow.engine.llm.vllm.start import rank_for

    most = max(json.loads((Path(at) / "adapter_config.json").read_bytes())["r"] for at in adapters)
    return rank_for(most)
