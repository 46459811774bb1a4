"""`caiflow serve`: a run's model at an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace

from caiflow.engine.commands.parser import open_store
from caiflow.engine.errors import CaiflowError

EXAMPLES = """\
  caiflow serve last rl_cai
  caiflow serve last rl_cai --port 8080 --engine transformers
  caiflow serve last rl_cai -- --max-model-len 4096          # the server's own options
  curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "rl_cai", "messages": [{"role": "user", "content": "Hello"}]}'
"""


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
    from caiflow.engine.lookback.history import find_run, output_kind, step_dir
    from caiflow.engine.serve import make_hub_cache, server_command

    path = step_dir(find_run(args.run, open_store()), args.step)
    if (kind := output_kind(path)) != "model":
        raise CaiflowError(f"{args.step}: its output is {kind}, not a model; name a step that trains one")
    command = server_command(path.absolute(), server=args.engine, host=args.host, port=args.port, extra=args.extra)
    make_hub_cache()
    print(f"serving {args.step} at http://{args.host}:{args.port}/v1", file=sys.stderr, flush=True)
    os.chdir(command.folder)
    os.execve(command.arguments[0], list(command.arguments), {**command.environment, **os.environ})
