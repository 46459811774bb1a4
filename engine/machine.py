"""What this machine gives to this process: cores, memory, its users' folders, and how a missing library is installed."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import sys
from contextlib import suppress
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

EXTRAS = {
    "vllm": "vllm",
    "lm-eval": "lm-eval",
    "qlora": "bitsandbytes",
    "deepspeed": "deepspeed",
    "serve": "uvicorn",
    "plots": "matplotlib",
    "completion": "shtab",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny",
    "trackio": "trackio",
}
"""What each extra brings, where caiflow runs without having been installed."""


def cores() -> int:
    """Return the CPU cores this process may use: fewer than the machine has where its affinity says so."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def gpus() -> int:
    """Return how many NVIDIA GPUs this machine's driver has, whether or not an installed library can use them."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def forget_peaks() -> bool:
    """Begin to look anew for the most memory that this process has; return whether the system lets it, as Linux does."""
    if torch := _torch_on_gpus():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return True
    return False


def peaks() -> dict[str, int]:
    """Return the most bytes that this process had since it forgot others: of memory, and of one GPU's what torch allocated."""
    found = {}
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(errors="replace").splitlines()  # a process may have any name
        found["peak_memory_bytes"] = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    if torch := _torch_on_gpus():
        devices = range(torch.cuda.device_count())
        found["peak_gpu_memory_bytes"] = max(torch.cuda.max_memory_allocated(device) for device in devices)
    return found


def _torch_on_gpus() -> Any:
    """Return torch where this process has used it on a GPU; importing it takes seconds."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def size(count: float) -> str:
    """Return a number of bytes in words, rounded up: GB of 10^9 bytes, as makers of GPUs count them, or MB."""
    return f"{ceil(count / 1e8) / 10:,.1f} GB" if count >= 1e9 else f"{ceil(count / 1e6):,} MB"


def home() -> Path:
    """Return the user's home folder; where the user has none, a folder that isn't there."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def local_path(text: str, base_dir: Path) -> Path:
    """Return the path that a text means in the folder `base_dir`: `~` is a home folder, where that user has one."""
    try:
        return base_dir / Path(text).expanduser()
    except RuntimeError:  # there is nobody of that name
        return base_dir / text


def pip_command(extra: str) -> str:
    """Return the command that installs the libraries of an extra: `pip install 'vllm>=0.32,<0.34'`."""
    from importlib.metadata import PackageNotFoundError, requires  # it takes long to import

    try:
        found = requires("caiflow") or ()
    except PackageNotFoundError:
        return f"pip install {EXTRAS[extra]}"
    wanted = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    libraries = [line.partition(";")[0].strip() for line in found if wanted.search(line)]
    return f"pip install {' '.join(repr(library) for library in libraries) or EXTRAS[extra]}"


MANY_FILES = 65_536
"""As many as a process is given to hold open; some libraries close all that they might hold, one after the other."""


@cache
def allow_many_files() -> None:
    """Let this process hold open as many files as it may; login shells and batch systems begin with 1,024 of far more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS takes fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@cache
def machine_tag() -> str:
    """Return a short word for this machine as it runs now: what has the same word shares a kernel, and so all its locks."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        started = b""
    return hashlib.sha256(os.uname().nodename.encode() + started).hexdigest()[:8]
