"""Loading the model to train, in the Hugging Face layout.

Owns adapters (LoRA, QLoRA), what TRL is shown of one on the output head, dtypes, and the tokenizer's chat template and padding.
Never trains, never saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import StepError
from caiflow.engine.llm import files
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import Task, base_and_adapter, load_weights
from caiflow.engine.llm.render import Renderer
from caiflow.engine.training import quantization
from caiflow.engine.training.checks import ALL, fitting
from caiflow.engine.training.loop import in_bf16
from caiflow.engine.training.params import Lora, TrainingParams

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with the chat template of its entry, a pad token, and the turn's own end as EOS.

    Training teaches to end a turn with that token, so whoever loads the tokenizer with the trained model is to stop there.
    """
    tokenizer: PreTrainedTokenizerBase = files.load_tokenizer(source)
    if source.chat_template:
        tokenizer.chat_template = source.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.eos_token = Renderer(tokenizer).end_of_turn
    return tokenizer


def load_model(source: ModelSource, params: TrainingParams, task: Task = "causal") -> PreTrainedModel:
    """Return the weights to train, as `load_alike` loads them.

    Raises:
        StepError: an adapter would be kept apart over another one, which no engine could load again.
    """
    refuse_two(source, params)
    return load_alike(source, params, task)


def refuse_two(source: ModelSource, params: TrainingParams) -> None:
    """Refuse to keep an adapter apart over another one, which no engine could load again.

    Raises:
        StepError: that is asked for.
    """
    if params.lora and not params.merge and base_and_adapter(source)[2] is not None:
        raise StepError(
            "merge: false on a model that is a kept adapter itself", "let one of the two fold its adapter in (`merge: true`)"
        )


def load_alike(source: ModelSource, params: TrainingParams, task: Task = "causal") -> PreTrainedModel:
    """Return a model in the form in which it is trained: any adapter folded in, weights quantised where QLoRA asks for it.

    All weights are trained in float32 unless the model's entry names bfloat16: in float16 the steps of usual optimizers
    overflow. Under adapters the frozen weights have the dtype of the entry, by default the one they are stored in on a GPU, and
    float32 on a CPU.
    """
    options: dict[str, Any] = {"dtype": _dtype(source, params), "attn_implementation": params.attn_implementation}
    bits = params.lora.quantization if params.lora else None
    if bits:
        options |= quantization.options(bits, in_bf16=in_bf16(params))
    model = load_weights(source, task, **{name: value for name, value in options.items() if value is not None})
    if bits:
        quantization.hold_layout(model)
    if params.lora and task == "causal":
        show_adapted_head(model)
    elif params.lora:
        model.score.register_forward_pre_hook(_in_its_dtype)
    return _trainable(model)


def _in_its_dtype(head: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what a head that learns in float32 reads of a model in another dtype."""
    return tuple(state.to(head.weight.dtype) for state in states)


def load_plain(source: ModelSource, dtype: torch.dtype | str = "auto", task: Task = "causal") -> PreTrainedModel:
    """Return a model as it is, any adapter folded in; to read from."""
    return _trainable(load_weights(source, task, dtype=dtype))


def _trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Have all weights learn that can, those too that an adapter had frozen before it was folded in."""
    for weights in model.parameters():
        weights.requires_grad_(weights.is_floating_point())
    return model


def _dtype(source: ModelSource, params: TrainingParams) -> torch.dtype | str:
    import torch

    if source.dtype != "auto" and (params.lora or source.dtype not in ("float16", "half")):
        return source.dtype
    return "auto" if params.lora and torch.cuda.is_available() else torch.float32


def lora_config(lora: Lora, model: PreTrainedModel, task: Task = "causal") -> LoraConfig:
    """Return PEFT's form of a model's adapter settings; a reward model's head is trained in full beside them."""
    from peft import LoraConfig

    targets: str | list[str] = ALL
    if isinstance(lora.targets, tuple):
        targets = list(lora.targets)
    elif lora.targets != ALL:
        targets = fitting(lora.targets, (name for name, _ in model.named_modules()))
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM" if task == "causal" else "SEQ_CLS",
        modules_to_save=None if task == "causal" else ["score"],
    )


def adapted_weight(layer: Any) -> Tensor:
    """Return the weight of a layer under adapters with what those in use add to it; gradients go through to them."""
    weight: Tensor = layer.base_layer.weight
    if layer.merged or layer.disable_adapters:
        return weight
    added = (layer.get_delta_weight(name) for name in layer.active_adapters if name in layer.lora_A)
    return sum((delta.to(weight.dtype) for delta in added), start=weight)


def learnt_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's weights by their names in a saved one, with what adapters add to them; the model stays as it is.

    Folding adapters in and out again instead would leave the frozen weights a little other each time, by rounding.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    adapted = {name: layer for name, layer in plain.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, weights in plain.named_parameters(remove_duplicate=False):  # vLLM takes a tied head by its own name
        owner, base, kind = name.rpartition(".base_layer.")
        if base and owner in adapted:
            with torch.no_grad():
                yield f"{owner}.{kind}", adapted_weight(adapted[owner]) if kind == "weight" else weights.detach()
        elif ".lora_" not in name:
            yield name, weights.detach()


class AdaptedHead:
    """An output head under adapters, as far as its weight [vocabulary, hidden] and bias are asked for.

    TRL's losses read the head's weight and never call the head, so that an adapter on it would learn nothing, and TRL refuses
    one. Shown the weight as the adapter makes it, W + s B A, they compute what the head itself would, and the gradient reaches
    A and B. Source: Hu et al. 2021 (LoRA, arXiv 2106.09685), section 4.1.
    """

    def __init__(self, head: Any) -> None:
        self._head = head
        self.base_layer = head.base_layer

    @property
    def weight(self) -> Tensor:
        """The weight with what the adapters in use add to it; gradients go through to them."""
        return adapted_weight(self._head)

    @property
    def bias(self) -> Tensor | None:
        """The bias, which adapters leave as it is."""
        bias: Tensor | None = self.base_layer.bias
        return bias


def show_adapted_head(model: PreTrainedModel) -> None:
    """Have a model's output head, once it is under adapters, shown with the weight that they make."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = model.get_output_embeddings

    def shown() -> Any:
        head = plain()
        return AdaptedHead(head) if isinstance(head, BaseTunerLayer) else head

    model.get_output_embeddings = shown
