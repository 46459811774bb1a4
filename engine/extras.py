"""The command that brings an optional library, as caiflow's own metadata names it: caiflow itself need not be on any index."""

from __future__ import annotations

import re

EXTRAS = {
    "vllm": "vllm",
    "lm-eval": "lm-eval",
    "qlora": "bitsandbytes",
    "serve": "fastapi uvicorn openai",
    "plots": "matplotlib",
}
"""What each extra brings, where caiflow runs without having been installed."""


def pip_command(extra: str) -> str:
    """Return the command that installs the libraries of an extra: `pip install 'vllm>=0.32,<0.34'`."""
    from importlib.metadata import PackageNotFoundError, requires  # it takes long to import

    try:
        found = requires("caiflow") or ()
    except PackageNotFoundError:
        return f"pip install {EXTRAS[extra]}"
    wanted = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    libraries = [line.partition(";")[0].strip() for line in found if wanted.search(line)]
    return "pip install " + " ".join(f"'{library}'" for library in libraries)
