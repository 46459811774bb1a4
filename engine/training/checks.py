"""What can be seen to be wrong with a training before anything of it runs: names and settings that only the libraries know.

Owns those names, which a test holds to the libraries' own. Loads no library and no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from caiflow.engine.display.trackers import missing
from caiflow.engine.errors import Finding, WrongValue, suggest
from caiflow.engine.llm.model_files import HEAD, layer_names, model_settings
from caiflow.engine.machine import pip_command
from caiflow.engine.training.params import Lora, TrainingParams, adapts_head

if TYPE_CHECKING:
    from caiflow.engine.llm.tokenizer_files import ModelFiles, TokenizerFiles

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
"""Optimizers that need nothing beside torch."""
QUANTISED_OPTIMIZERS = (
    *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "ademamix", "ademamix_8bit"),
    *("paged_ademamix_8bit", "paged_ademamix_32bit", "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
"""Optimizers of the bitsandbytes library."""
SCHEDULERS_NEED = {"cosine_with_min_lr": ("min_lr", "min_lr_rate"), "warmup_stable_decay": ("num_decay_steps",)}
"""By scheduler, the settings of which it needs one."""
ATTENTION = {
    "eager": "",
    "sdpa": "",
    "flex_attention": "",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_3",
}
"""Attention kernels by name, and the module that each needs."""
ALL = "all-linear"
"""The name that means every linear layer but the output head; no pattern."""

ADAPTED = "name linear layers or embeddings, such as q_proj"


def wrong_settings(params: TrainingParams) -> Iterator[Finding]:
    """Yield the names that no library here has, and what a scheduler lacks."""
    if params.optim not in (*OPTIMIZERS, *QUANTISED_OPTIMIZERS):
        known = QUANTISED_OPTIMIZERS if "bit" in params.optim else OPTIMIZERS
        yield Finding(("optim",), f"unknown optimizer `{params.optim}`", suggest(params.optim, known, "optimizers"))
    elif params.optim in QUANTISED_OPTIMIZERS and not find_spec("bitsandbytes"):
        yield Finding(
            ("optim",), f"`{params.optim}` needs the bitsandbytes library", f"{pip_command('qlora')}, or use adamw_torch"
        )
    needed = SCHEDULERS_NEED.get(params.lr_scheduler_type, ())
    if needed and not set(needed) & set(params.lr_scheduler_kwargs):
        told = f"`{params.lr_scheduler_type}` needs {' or '.join(f'`{name}`' for name in needed)}"
        yield Finding(("lr_scheduler_type",), told, f"write `lr_scheduler_kwargs: {{{needed[0]}: ...}}`")
    yield from missing(params.report_to)
    if (gpus := params.resources.num_gpus or 0) > 1:
        told = f"each worker of a training uses one GPU, got {gpus:g}"
        more = f"write `resources: {{workers: {int(gpus) * params.resources.workers}}}`, one for each GPU"
        yield Finding(("resources", "num_gpus"), told, more)
    yield from _wrong_division(params)
    yield from _wrong_attention(params.attn_implementation)


def _wrong_division(params: TrainingParams) -> Iterator[Finding]:
    """Yield where a model can't be divided among workers."""
    if not params.fsdp and "fsdp_config" in params.model_fields_set:
        yield Finding(("fsdp_config",), "`fsdp_config` says how `fsdp` divides a model, and that is off", "write `fsdp: true`")
    if (way := params.division) is None:
        return
    if params.resources.workers < 2:
        told = f"`{way}` divides a model among several workers, and there is one"
        yield Finding((way,), told, "write `resources: {workers: 8}`, one for each GPU")
    if params.lora is not None and params.lora.quantization:
        told = f"`{way}` doesn't divide weights that are rounded"
        yield Finding((way,), told, f"leave `{way}` out, or `lora.quantization`")
    if params.lora is not None and adapts_head(params.lora):
        yield Finding((way,), f"`{way}` divides no adapter on `{HEAD}`", f"leave `{way}` out, or `{HEAD}`")
    yield from _wrong_fsdp(params) if params.fsdp else ()
    yield from _wrong_deepspeed(params) if params.deepspeed else ()


def _wrong_fsdp(params: TrainingParams) -> Iterator[Finding]:
    if params.resources.num_gpus == 0:
        told = "`fsdp` divides a model among GPUs, and `resources` has `num_gpus: 0`"
        yield Finding(("fsdp",), told, "leave one of them out")
    if params.gradient_checkpointing and params.fsdp_config.activation_checkpointing:
        told = "`activation_checkpointing` does what `gradient_checkpointing` does"
        yield Finding(("fsdp_config", "activation_checkpointing"), told, "leave one of them out")


def _wrong_deepspeed(params: TrainingParams) -> Iterator[Finding]:
    if params.fsdp:
        yield Finding(("deepspeed",), "`deepspeed` and `fsdp` are two ways to divide a model", "leave one of them out")
    elif not find_spec("deepspeed"):
        yield Finding(
            ("deepspeed",), "`deepspeed` needs the library of that name", f"{pip_command('deepspeed')}, or use `fsdp`"
        )
    offloads = params.deepspeed is not None and params.deepspeed.zero_optimization.offload_optimizer.device == "cpu"
    if offloads and params.optim != "adamw_torch":
        told = f"`offload_optimizer` takes its steps by DeepSpeed's own Adam, got `optim: {params.optim}`"
        yield Finding(("optim",), told, "write adamw_torch, or leave `offload_optimizer` out")


def _wrong_attention(name: str | None) -> Iterator[Finding]:
    if name is None:
        return
    if "/" in name:
        told = f"`{name}` is a repository of kernels, whose code would run on this machine"
        yield Finding(("attn_implementation",), told, f"use one of {', '.join(ATTENTION)}")
    elif name not in ATTENTION:
        yield Finding(("attn_implementation",), f"unknown attention `{name}`", suggest(name, ATTENTION, "kernels"))
    elif ATTENTION[name] and not find_spec(ATTENTION[name]):
        yield Finding(("attn_implementation",), f"`{name}` needs `{ATTENTION[name]}`, which isn't installed", "use sdpa")


def wrong_for_model(params: TrainingParams, model: ModelFiles, *, head: bool) -> Iterator[Finding]:
    """Yield what a model rules out; `head` says whether its output head is in use, which a reward model's isn't."""
    settings = model_settings(model.folder)
    if rounded := _told(settings, "quantization_config"):
        how = rounded.get("quant_method", "quantised") if isinstance(rounded, Mapping) else rounded
        told = f"the model's own weights are rounded ({how}): they can't be trained, and no adapters be folded into them"
        yield Finding(("model",), told, "name the model with plain weights, and round those with `lora: {quantization: 4bit}`")
    if params.lora is not None and (layers := layer_names(model.folder)):
        if not head:
            layers.pop(HEAD, None)
        elif _told(settings, "tie_word_embeddings") is not False:
            layers.setdefault(HEAD, True)  # no file has it, since it is the token embedding too
        yield from list(_wrong_targets(params.lora, layers)) or _wrong_dropout(params.lora)
    positions = _told(settings, "max_position_embeddings")
    if isinstance(positions, int) and "max_length" in params.model_fields_set and params.max_length > positions:
        told = f"`max_length` is beyond the model's {positions} positions, got {params.max_length}"
        yield Finding(("max_length",), told, f"write {positions} or less")
    yield from _wrong_tokenizer(model.tokenizer, _told(settings, "vocab_size"))


def _told(settings: Mapping[str, Any], name: str) -> Any:
    """Return what a model's settings say, or those of the part of it that reads text."""
    part = settings.get("text_config")
    return settings.get(name, part.get(name) if isinstance(part, Mapping) else None)


def _wrong_tokenizer(tokenizer: TokenizerFiles, embeddings: Any) -> Iterator[Finding]:
    """Yield tokens without an embedding, and a tokenizer with which no reply could end."""
    if isinstance(embeddings, int) and tokenizer.size is not None and tokenizer.size > embeddings:
        told = f"the tokenizer has {tokenizer.size} tokens, and the model embeddings for {embeddings}"
        yield Finding(("model",), told, "name the model's own `tokenizer` in its entry")
    if tokenizer.size is not None and tokenizer.eos is None and tokenizer.end_of_turn is None:
        told = "the tokenizer has no `eos_token`, and the chat template ends turns with no token of its own"
        yield Finding(("model",), told, "name one in its tokenizer_config.json, or no reply could be learnt to end")


def fitting(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern fits as a whole, in order, by a search that never goes back: a spec could keep one busy.

    The libraries are given these, never the pattern.

    Raises:
        WrongValue: it is no regular expression, or one that only going back can search.
    """
    import polars as pl

    layers = pl.Series(list(names), dtype=pl.String)
    try:
        layers.str.contains(pattern)  # by itself: what follows puts it in brackets
        found: list[str] = layers.filter(layers.str.contains(f"^(?:{pattern})$")).to_list()
    except pl.exceptions.ComputeError as error:
        said = next((line[7:] for line in str(error).splitlines() if line.startswith("error: ")), "no regular expression")
        raise WrongValue(f"`{pattern}` isn't a pattern that can be searched: {said}", "give a list of layers' names") from None
    return found


def _wrong_targets(lora: Lora, layers: Mapping[str, bool]) -> Iterator[Finding]:
    if isinstance(lora.targets, str):
        yield from _wrong_pattern(lora.targets, layers)
        return
    for place, name in enumerate(lora.targets):
        path = ("lora", "targets", place)
        meant = [layer for layer in layers if layer == name or layer.endswith(f".{name}")]
        if not meant:
            yield Finding(path, f"the model has no layer `{name}`", suggest(name, _last_names(layers), "layers"))
        elif not all(layers[layer] for layer in meant):
            yield Finding(path, f"`{name}` takes no adapter: its weight is no matrix", ADAPTED)


def _wrong_pattern(pattern: str, layers: Mapping[str, bool]) -> Iterator[Finding]:
    path = ("lora", "targets")
    if pattern == ALL:
        return
    try:
        meant = fitting(pattern, _modules(layers))
    except WrongValue as error:
        yield Finding(path, error.message, error.hint)
        return
    if not meant:
        several = f"write a list: [{', '.join(pattern.split(','))}]" if "," in pattern else ""
        near = several or suggest(pattern, _last_names(layers), "layers")
        yield Finding(path, f"the pattern `{pattern}` fits no whole name of a layer", near)
    elif odd := next((module for module in meant if not layers.get(module)), None):
        yield Finding(path, f"the pattern `{pattern}` fits `{odd}` too, which takes no adapter", ADAPTED)


def _wrong_dropout(lora: Lora) -> Iterator[Finding]:
    """Yield a dropout before the output head, whose adapter is learnt through its weight: nothing is read there to drop."""
    if lora.dropout and adapts_head(lora):
        told = f"no adapter on `{HEAD}` is trained with `dropout`, since the losses read the head's weight alone"
        yield Finding(("lora", "dropout"), told, f"leave `dropout` out, or `{HEAD}`")


def _modules(layers: Iterable[str]) -> list[str]:
    """Return the names of layers and of all that they are parts of, in order."""
    found = (layer.split(".")[:end] for layer in layers for end in range(1, layer.count(".") + 2))
    return list(dict.fromkeys(".".join(parts) for parts in found))


def _last_names(layers: Mapping[str, bool]) -> Sequence[str]:
    return sorted({layer.rpartition(".")[2] for layer, matrix in layers.items() if matrix})
