"""Why a start of vLLM failed, in plain words.

Owns what vLLM's processes print while it starts: the error that reaches this process may say no more than that the cause was
printed elsewhere. Starts nothing.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from types import TracebackType

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.files import load_error

_HINTS = {
    "max seq len": "lower max_model_len, or raise gpu_memory_utilization (GPU) or VLLM_CPU_KVCACHE_SPACE (CPU, GiB)",
    "no available memory": "the weights leave too little for the cache: raise gpu_memory_utilization or use a smaller model",
    "free memory": "something else holds the device's memory: free it, or lower gpu_memory_utilization",
    "out of memory": "use a smaller model, dtype or max_num_seqs, quantization, or more GPUs (num_gpus)",
}
_ELSEWHERE = re.compile(r"root cause|background process", re.IGNORECASE)
"""What vLLM says where the cause was printed by another of its processes."""
_PREFIX = re.compile(r"^(\([^)]*\) ?)?((ERROR|CRITICAL|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_ERROR_LINE = re.compile(r"^[\w.]*(Error|Exception|Exit|Interrupt)\b.*:")
_OUR_DRAWS = re.compile(r"caiflow[./]engine[./]llm[./]vllm[./]draws_|SeededDraws")
_KEPT_BYTES = 64 << 10


class Printed:
    """Keeps the last of what this process and those it starts print within the block, and lets it through.

    Works on the file descriptors, since vLLM's processes inherit those. A process that lives on writes through the pipe as long
    as it lives; a thread passes that on.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._threads: list[threading.Thread] = []
        self._saved: list[tuple[int, int]] = []

    def __enter__(self) -> Printed:
        for number in (1, 2):
            reading, writing = os.pipe()
            saved = os.dup(number)
            os.dup2(writing, number)
            os.close(writing)
            self._saved.append((number, saved))
            self._threads.append(threading.Thread(target=self._pass_on, args=(reading, os.dup(saved)), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in self._saved:
            os.dup2(saved, number)
            os.close(saved)

    def text(self) -> str:
        """Return what was printed; call it after the block, where it failed: waits a little for the processes to end."""
        for thread in self._threads:
            thread.join(timeout=5)
        return bytes(self._kept).decode("utf-8", "replace")

    def _pass_on(self, reading: int, to: int) -> None:
        while part := os.read(reading, 1 << 16):
            self._kept += part
            del self._kept[:-_KEPT_BYTES]
            os.write(to, part)
        os.close(reading)
        os.close(to)


def start_error(what: str, error: Exception, printed: str) -> EngineError:
    """Return the error of a failed start with its cause and what to do about it.

    Where vLLM says that the cause was printed elsewhere, `printed` has it: the message takes its last line, the hint all of it.
    """
    elsewhere = _ELSEWHERE.search(str(error)) is not None
    lines = printed_errors(printed) if elsewhere else []
    text = "\n".join(lines) or str(error)
    whole = _whole(error, printed if elsewhere else "")
    if _OUR_DRAWS.search(whole):
        return _refused_draws(what, (lines or [str(error)])[-1], whole)
    for sign, hint in _HINTS.items():
        if sign in text.lower():
            line = next((line for line in text.splitlines() if sign in line.lower()), text)
            return EngineError(f"vLLM can't start with {what}: {line.strip()[:400]}", hint, kind="load")
    if lines:
        return EngineError(f"vLLM can't start with {what}: {lines[-1][:400]}", f"the cause as a whole:\n{whole}", kind="load")
    return load_error(f"{what} into vLLM", error)


def printed_errors(printed: str) -> list[str]:
    """Return the lines that name errors in what was printed, without the processes' names, and none that points elsewhere."""
    lines = [_PREFIX.sub("", line, count=1) for line in _COLOUR.sub("", printed).splitlines()]
    return [line for line in lines if _ERROR_LINE.match(line) and not _ELSEWHERE.search(line)]


def _whole(error: Exception, printed: str) -> str:
    own = "".join(traceback.format_exception(error)).rstrip()
    return f"{own}\n\nvLLM's processes printed:\n{printed.rstrip()}" if printed.strip() else own


def _refused_draws(what: str, cause: str, whole: str) -> EngineError:
    from vllm import __version__

    return EngineError(
        f"vLLM {__version__} can't start with {what}, since it doesn't take caiflow's draws: {cause.strip()[:400]}",
        "install a vLLM that caiflow's extra `vllm` names, or set `draws: vllm` on the model: vLLM then draws other tokens, "
        f"whose rows are kept apart; the cause as a whole:\n{whole}",
        kind="load",
    )
