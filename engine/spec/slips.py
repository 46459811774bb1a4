"""What people write for a key that stands elsewhere here, or has another name: the commonest slips, and what is meant.

Used only where a key is unknown. Says nothing of keys that are merely misspelt, which `suggest` finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

ELSEWHERE = {
    "epochs": ("num_train_epochs",),
    "n_epochs": ("num_train_epochs",),
    "num_epochs": ("num_train_epochs",),
    "lr": ("learning_rate",),
    "batch_size": ("per_device_train_batch_size",),
    "train_batch_size": ("per_device_train_batch_size",),
    "micro_batch_size": ("per_device_train_batch_size",),
    "grad_accum": ("gradient_accumulation_steps",),
    "warmup_ratio": ("warmup_steps",),
    "lr_scheduler": ("lr_scheduler_type",),
    "scheduler": ("lr_scheduler_type",),
    "max_seq_length": ("max_length",),
    "max_seq_len": ("max_length",),
    "sequence_len": ("max_length",),
    "kl_coef": ("beta",),
    "init_kl_coef": ("beta",),
    "r": ("rank", "lora.rank"),
    "lora_r": ("rank", "lora.rank"),
    "lora_alpha": ("alpha", "lora.alpha"),
    "lora_dropout": ("dropout", "lora.dropout"),
    "target_modules": ("targets", "lora.targets"),
    "lora_target": ("targets", "lora.targets"),
    "max_new_tokens": ("max_tokens", "sampling.max_tokens"),
    "max_completion_tokens": ("max_tokens", "sampling.max_tokens"),
    "n": ("samples",),
    "num_return_sequences": ("samples",),
    "num_samples": ("samples",),
    "stop_sequences": ("stop", "sampling.stop"),
    "path": ("source",),
    "dataset": ("source",),
    "file": ("source",),
    "data_files": ("source",),
    "data_dir": ("folder",),
    "config_name": ("subset",),
    "num_rows": ("limit", "sample"),
    "max_samples": ("limit", "sample"),
    "model_name": ("model", "source"),
    "model_name_or_path": ("model", "source"),
    "api_base": ("base_url",),
    "gpus": ("num_gpus", "resources.num_gpus"),
}
"""Keys of other tools (transformers, PEFT, TRL, axolotl, LLaMA-Factory, OpenAI) and where the same stands here."""


def meant(key: str, owner: Schema, definitions: Schema, value: Any = None) -> str | None:
    """Return where `key` stands within the mapping that the schema `owner` describes (`sampling.stop`); None if nowhere.

    A field that is a mapping isn't meant by a plain `value`.
    """
    for place in (*ELSEWHERE.get(key, ()), *_inside(key, owner, definitions, value)):
        if _has(place.split("."), owner, definitions):
            return place
    return None


def _inside(key: str, owner: Schema, definitions: Schema, value: Any) -> Iterator[str]:
    """Yield the fields of `owner` that are mappings with this key, one level down."""
    for name, field in owner.get("properties", {}).items():
        for group in _mappings(field, definitions):
            inner = group["properties"].get(key)
            if inner is not None and (isinstance(value, Mapping) or "$ref" not in inner):
                yield f"{name}.{key}"


def _has(path: list[str], owner: Schema, definitions: Schema) -> bool:
    first, *rest = path
    field = owner.get("properties", {}).get(first)
    if field is None or not rest:
        return field is not None
    return any(_has(rest, group, definitions) for group in _mappings(field, definitions))


def _mappings(field: Schema, definitions: Schema) -> Iterator[Schema]:
    """Yield the mappings with named fields that a field may be."""
    for option in (field, *field.get("anyOf", ())):
        found = definitions[option["$ref"].rpartition("/")[2]] if "$ref" in option else option
        if "properties" in found:
            yield found
