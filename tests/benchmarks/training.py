"""Measures `sft` and `dpo` against the bare library scripts: same model, rows and settings, rows read to model saved.

Both sides run in one process, in turns, after a warm-up. Run `python -m benchmarks.training` within tests/.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import Job, StepContext
from caiflow.engine.rows.folder import Rows, RowsWriter

ROWS = 600
SETTINGS: dict[str, Any] = {"learning_rate": 1e-4, "per_device_train_batch_size": 8, "num_train_epochs": 1, "seed": 3}
MODEL = Path(__file__).parents[2] / "examples/tiny/model"


def make_data(folder: Path, rows: int) -> None:
    """Write conversations of one turn and preferences, of 30 to 130 tokens."""
    dice = random.Random(7)
    words = ["bake", "a", "cake", "paint", "the", "wall", "first", "take", "your", "time", "then", "check", "it", "twice"]

    def text(low: int, high: int) -> str:
        return " ".join(dice.choices(words, k=dice.randint(low, high)))

    with RowsWriter(folder / "rows") as out:
        for place in range(rows):
            prompt = [{"role": "user", "content": text(8, 30)}]
            chosen, rejected = text(10, 80), text(10, 80)
            out.write_rows([{"uid": str(place), "prompt": prompt, "response": chosen, "chosen": chosen, "rejected": rejected}])


def ours(kind: str, data: Path, out: Path, model: Path = MODEL) -> list[float]:
    """Train with the operator and return the loss of each step."""
    from caiflow.engine.training.loop import HISTORY
    from caiflow.operators.dpo import Dpo, DpoParams
    from caiflow.operators.sft import Sft, SftParams

    fields = {name: value for name, value in SETTINGS.items() if name != "seed"}
    fields |= {"input": "rows", "model": "base", "lora": {"rank": 16}}
    operator: Any = Sft(SftParams(**fields), StepContext()) if kind == "sft" else Dpo(DpoParams(**fields), StepContext())
    (out / "work").mkdir(parents=True)
    models = {"base": ModelSource(path=str(model), identity=model.name)}
    operator.train(Job(out / "model", {"rows": Rows(data / "rows")}, models, seed=SETTINGS["seed"], work_dir=out / "work"))
    points = map(json.loads, (out / "model" / HISTORY).read_text(encoding="utf-8").splitlines())
    return [float(point["loss"]) for point in points if "loss" in point]


def theirs(kind: str, data: Path, out: Path, model: Path = MODEL) -> list[float]:
    """Train as the library's documentation shows and return the loss of each step."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = Rows(data / "rows").pylist()
    tokenizer = AutoTokenizer.from_pretrained(model)
    common: dict[str, Any] = {"bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    common |= {**SETTINGS, "gradient_checkpointing": False, "dataloader_pin_memory": False, "logging_steps": 1}
    if kind == "sft":
        records = [{"prompt": row["prompt"], "completion": [_said(row["response"])]} for row in rows]
        trainer_type, config = SFTTrainer, SFTConfig(str(out), **common)
    else:
        records = [{"prompt": row["prompt"], **{side: [_said(row[side])] for side in ("chosen", "rejected")}} for row in rows]
        trainer_type, config = DPOTrainer, DPOConfig(str(out), **common)
    trainer = trainer_type(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config,
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    return [float(point["loss"]) for point in trainer.state.log_history if "loss" in point]


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SIDES: dict[str, Callable[..., list[float]]] = {"ours": ours, "theirs": theirs}


def measure(rows: int = ROWS, repeats: int = 5, model: Path = MODEL, said: str = "") -> list[dict[str, Any]]:
    """Return the figures: tokens per second of both sides, medians of `repeats`; `said` tells of the model in the names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, rows)
        return [_compare(kind, folder, rows, repeats, model, said) for kind in ("sft", "dpo")]


def _compare(kind: str, folder: Path, rows: int, repeats: int, model: Path, said: str) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(repeats + 1):
        for side, train in SIDES.items():
            start = time.perf_counter()
            train(kind, folder, folder / f"{kind}-{side}-{turn}", model)
            if turn:  # the first turn warms up
                seconds[side].append(time.perf_counter() - start)
    middle = {side: statistics.median(found) for side, found in seconds.items()}
    tokens = _tokens(kind, folder, model)
    line: dict[str, Any] = {"name": f"{kind} against bare TRL{said}", "unit": "tokens/s"}
    line |= {side: round(tokens / took) for side, took in middle.items()}
    line |= {f"rows_per_s_{side}": round(rows / took, 2) for side, took in middle.items()}
    line |= {f"spread_{side}": f"{tokens / max(found):.0f} to {tokens / min(found):.0f}" for side, found in seconds.items()}
    return {**line, "ratio": round(middle["theirs"] / middle["ours"], 3), "runs": repeats}


def _tokens(kind: str, folder: Path, model: Path) -> int:
    """Return the tokens that one epoch reads, padding apart: a conversation a row, or two of a pair."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    replies = ("response",) if kind == "sft" else ("chosen", "rejected")
    talks = [[*row["prompt"], _said(row[reply])] for row in Rows(folder / "rows").pylist() for reply in replies]
    return sum(len(tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"]) for talk in talks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(json.dumps(measure(given.rows, given.repeats), indent=2))
