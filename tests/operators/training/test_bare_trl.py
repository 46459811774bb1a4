"""Each step's loss and gradients are those of the library's own script on the same conversations, tokenised by itself.

For `sft`, `dpo` with certain labels and `reward`, in full and with adapters. The trainers of replies draw prompts in an order
of our own, so that no script of the library takes the same steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.training.loop import HISTORY, seed_of
from support.small_models import lessons, preferences
from support.trainings import train

SETTINGS = {
    "num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
    "logging_steps": 1, "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5,
}  # fmt: skip
KINDS = {  # trainer, its settings and the kind of model, by the libraries' names
    "sft": ("SFTTrainer", "SFTConfig", "AutoModelForCausalLM"),
    "dpo": ("DPOTrainer", "DPOConfig", "AutoModelForCausalLM"),
    "reward": ("RewardTrainer", "RewardConfig", "AutoModelForSequenceClassification"),
}
WAYS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"rank": 4, "targets": ["q_proj", "v_proj", "embed_tokens"]}}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def records(kind: str) -> list[dict[str, Any]]:
    """Return the rows as the library's documentation has them."""
    if kind == "sft":
        return [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in lessons()]
    return [{"prompt": row["prompt"], **{side: said(row[side]) for side in ("chosen", "rejected")}} for row in preferences()]


def theirs(kind: str, model: str, folder: Path, lora: dict[str, Any], seed: int) -> list[dict[str, float]]:
    """Train by the library alone; return what it logged of each step."""
    import transformers
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    trainer_name, config_name, model_name = KINDS[kind]
    more = {"num_labels": 1} if kind == "reward" else {}
    args = getattr(trl, config_name)(
        str(folder), seed=seed, data_seed=seed, bf16=False, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False, max_length=1024, **SETTINGS,
    )  # fmt: skip
    transformers.set_seed(seed)
    peft = LoraConfig(
        r=lora["rank"], lora_alpha=2 * lora["rank"], target_modules=lora["targets"],
        task_type="SEQ_CLS" if kind == "reward" else "CAUSAL_LM", modules_to_save=["score"] if kind == "reward" else None,
    ) if lora else None  # fmt: skip
    trainer = getattr(trl, trainer_name)(
        model=getattr(transformers, model_name).from_pretrained(model, **more), args=args,
        train_dataset=Dataset.from_list(records(kind)),
        processing_class=transformers.AutoTokenizer.from_pretrained(model), peft_config=peft,
    )  # fmt: skip
    trainer.train()
    return [point for point in trainer.state.log_history if "loss" in point]


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        pytest.param(kind, way, marks=() if (kind, way) in {("sft", "full"), ("dpo", "lora")} else pytest.mark.soak)
        for kind in KINDS
        for way in WAYS
    ],
)
def test_every_step_is_the_library_s(kind: str, way: str, model: ModelSource, tmp_path: Path) -> None:
    lora = {"lora": WAYS[way]} if WAYS[way] else {}
    labels = {} if kind == "sft" else {"labels": "hard"}
    done = train(tmp_path / "ours", kind, model, **SETTINGS, **lora, **labels)
    ours = [point for line in (done.out_dir / HISTORY).read_text().splitlines() if "loss" in (point := json.loads(line))]
    bare = theirs(kind, model.path, tmp_path / "theirs", WAYS[way], seed_of(done))
    assert len(ours) == len(bare) == 10
    for figure in ("loss", "grad_norm", "learning_rate"):
        assert [point[figure] for point in ours] == pytest.approx([point[figure] for point in bare], rel=1e-4, abs=1e-7), figure
