"""What trials know of this machine, and the model they use."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import ModelSource


def bundled(**entry: Any) -> ModelSource:
    """Return the bundled model, as the entry `{source: tiny, ...entry}` of a spec would."""
    from caiflow.engine.plan.model_identity import resolve_model
    from caiflow.engine.spec.grammar import ModelEntry

    return resolve_model("tiny", ModelEntry(source="tiny", **entry), Path())


@cache
def gpus() -> tuple[str, ...]:
    """Return the names of the CUDA devices that torch sees."""
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def memory_used() -> int:
    """Return the bytes in use: of the first GPU, by whomever, or of this process where there is none."""
    import gc

    import torch

    gc.collect()
    if gpus():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(0)
        return int(total - free)
    import psutil

    return int(psutil.Process().memory_info().rss)
