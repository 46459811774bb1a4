"""Loading the model to train and saving what came of it, in the Hugging Face layout.

Owns adapters (LoRA, QLoRA), dtypes and the chat template that is saved along. Never trains.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import adapter_base, refuse_reward_model
from caiflow.engine.training.params import Lora, TrainingParams

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Task = Literal["causal", "reward"]


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with the chat template of its entry and a pad token."""
    from transformers import AutoTokenizer

    place = source.tokenizer or source.path
    revision = None if source.tokenizer else source.revision
    tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=source.trust_remote_code)
    if source.chat_template:
        tokenizer.chat_template = source.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(source: ModelSource, params: TrainingParams, task: Task = "causal") -> PreTrainedModel:
    """Return the weights to train: any adapter of the source folded in, frozen weights quantised where QLoRA asks for it.

    All weights are trained in float32 unless the model's entry names another dtype; under adapters the frozen weights keep
    the dtype they are stored in on a GPU, and are float32 on a CPU.

    Raises:
        StepError: an adapter would be kept apart over another one, which no engine could load again.
    """
    if params.lora and not params.merge and _base_and_adapter(source)[2] is not None:
        raise StepError(
            "merge: false on a model that is a kept adapter itself; let one of the two fold its adapter in (`merge: true`)"
        )
    quantization = params.lora.quantization if params.lora else None
    options: dict[str, Any] = {"dtype": _dtype(source, params), "attn_implementation": params.attn_implementation}
    if quantization:
        options |= {
            "quantization_config": _quantization(quantization),
            "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))},
        }
    return _load(source, task, {name: value for name, value in options.items() if value is not None})


def load_plain(source: ModelSource, dtype: torch.dtype | str = "auto", task: Task = "causal") -> PreTrainedModel:
    """Return a model as it is, any adapter folded in; to read from, or to fold an adapter into."""
    return _load(source, task, {"dtype": dtype})


def _load(source: ModelSource, task: Task, options: dict[str, Any]) -> PreTrainedModel:
    path, revision, adapter = _base_and_adapter(source)
    options |= {"revision": revision, "trust_remote_code": source.trust_remote_code}
    if task == "reward":
        options["num_labels"] = 1
    else:
        refuse_reward_model(source._replace(path=path, revision=revision))
    model = _auto_class(task).from_pretrained(path, **options)
    if adapter is None:
        return model
    from peft import PeftModel

    whole = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    for weights in whole.parameters():  # which the adapter had frozen
        weights.requires_grad_(weights.is_floating_point())
    return whole


def _auto_class(task: Task) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification


def _base_and_adapter(source: ModelSource) -> tuple[str, str | None, str | None]:
    """Return (model, revision, adapter); a folder that holds only an adapter names its model itself."""
    if source.adapter is None and (base := adapter_base(Path(source.path))):
        return *base, source.path
    return source.path, source.revision, source.adapter


def stored_dtype(source: ModelSource) -> torch.dtype:
    """Return the dtype that the model's weights are stored in."""
    import torch
    from transformers import AutoConfig

    path, revision, _ = _base_and_adapter(source)
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=source.trust_remote_code)
    return config.dtype or torch.float32


def _dtype(source: ModelSource, params: TrainingParams) -> torch.dtype | str:
    import torch

    if source.dtype != "auto":
        return source.dtype
    return "auto" if params.lora and torch.cuda.is_available() else torch.float32


def _quantization(bits: str) -> Any:
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise StepError(
            f"lora.quantization: {bits} needs a GPU and the bitsandbytes library; install it, or leave `quantization` out"
        )
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def lora_config(lora: Lora, task: Task = "causal") -> LoraConfig:
    """Return PEFT's form of the adapter settings; a reward model's head is trained in full beside them."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type="CAUSAL_LM" if task == "causal" else "SEQ_CLS",
        modules_to_save=None if task == "causal" else ["score"],
    )


def save_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    out_dir: Path,
    *,
    params: TrainingParams,
    source: ModelSource | None,
    task: Task = "causal",
) -> None:
    """Save the trained model and its tokenizer: adapters folded in unless `merge` is off, in the dtype the source is stored in.

    Adapters over quantised weights are folded into the weights as stored, not into the quantised ones, which would round twice.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    adapters = hasattr(model, "merge_and_unload")
    if adapters and not params.merge:
        model.save_pretrained(out_dir)
    else:
        _whole(model, out_dir, params, source, task).save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    (out_dir / "README.md").unlink(missing_ok=True)


def _whole(model: Any, out_dir: Path, params: TrainingParams, source: ModelSource | None, task: Task) -> Any:
    if params.lora and params.lora.quantization and source is not None:
        from peft import PeftModel

        adapter = out_dir / "_adapter"
        model.save_pretrained(adapter)
        model = PeftModel.from_pretrained(load_plain(source, task=task), str(adapter))
        _remove(adapter)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return model if source is None else model.to(stored_dtype(source))


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
