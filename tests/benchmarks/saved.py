"""Measures what it costs to hold each saved model to the trained one, as a share of its whole training.

Both are processor seconds of this process, rows read to model saved, so that other work on the machine counts in neither. Run
`python -m benchmarks.saved` within tests/; `--real` takes the model of the package index, which needs minutes for each line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.chain import save_real_model
from benchmarks.training import MODEL, make_data
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.model_files import PACKAGED
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.rows.folder import Rows
from caiflow.engine.training import saving
from caiflow.operators.dpo import Dpo, DpoParams
from caiflow.operators.reward import Reward, RewardParams
from caiflow.operators.rl import Rl
from caiflow.operators.sft import Sft, SftParams
from caiflow.operators.training.params import RlParams

LORA = {"rank": 16}
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA, folded in": {"lora": LORA},
    "LoRA, kept apart": {"lora": LORA, "merge": False},
}
_GRPO = {"algorithm": "grpo", "rewards": {"judge": 1.0}, "num_generations": 4, "max_completion_length": 32}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (Sft, SftParams, {}),
    "dpo": (Dpo, DpoParams, {}),
    "reward": (Reward, RewardParams, {}),
    "rl": (Rl, RlParams, _GRPO),
}


class Clock:
    """Processor seconds spent within what it counts."""

    seconds = 0.0

    def counted(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same work, its time counted here."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        return timed


@contextmanager
def checks_counted() -> Iterator[Clock]:
    """Count what the check takes: measuring twice, and loading what was saved."""
    clock, save, loaded = Clock(), saving.save, saving._loaded
    saving._loaded = clock.counted(loaded)
    saving.save = lambda trained, params, job: save(replace(trained, measure=clock.counted(trained.measure)), params, job)
    try:
        yield clock
    finally:
        saving.save, saving._loaded = save, loaded


def share(kind: str, way: str, data: Path, out: Path, models: dict[str, ModelSource], **more: Any) -> tuple[float, float]:
    """Return the processor seconds of the check and of the whole training."""
    operator_type, params_type, fields = KINDS[kind]
    settings = {"input": "rows", "model": "base", "per_device_train_batch_size": 8, "learning_rate": 1e-4}
    operator = operator_type(params_type.model_validate({**settings, **fields, **WAYS[way], **more}), StepContext())
    (out / "work").mkdir(parents=True)
    job = Job(out / "model", {"rows": Rows(data / "rows")}, models, work_dir=out / "work")
    with checks_counted() as clock:
        start = time.process_time()
        operator.train(job)
        whole = time.process_time() - start
    assert job.metrics["saved_loss"] is not None
    return clock.seconds, whole


def measure(
    rows: int, model: Path = MODEL, kinds: tuple[str, ...] = tuple(KINDS), said: str = "", **more: Any
) -> list[dict[str, Any]]:
    """Return a line for each trainer and way of saving."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, rows)
        models = {"base": ModelSource(str(model), "base")}
        share("sft", "all weights", folder, folder / "warm", models, max_steps=1)  # imports
        if "rl" in kinds:
            share("reward", "all weights", folder, folder / "judge", models, max_steps=20)
            models["judge"] = ModelSource(str(folder / "judge" / "model"), "judge")
        for kind in kinds:
            for way in [*WAYS][: 2 if kind == "reward" else None]:  # a reward model is saved whole
                check, whole = share(kind, way, folder, folder / f"{kind}-{way}", models, **more)
                figures = {"check_s": round(check, 2), "whole_s": round(whole, 2), "share": round(check / whole, 4)}
                lines.append({"name": f"{kind}, {way}{said}", **figures})
                print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        real = save_real_model(Path(scratch)) if given.real else MODEL
        if real is None:
            sys.exit(f"without the real model: {PACKAGED['smollm2'].command}")
        measure(given.rows, real, tuple(given.kinds), per_device_train_batch_size=given.batch)
