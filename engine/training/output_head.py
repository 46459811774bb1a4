"""Adapters on a model's output head, whose weight TRL reads by itself.

TRL's losses take the head's weight and never call the head, so an adapter on it would learn nothing, and TRL refuses one.
Shown the weight as the adapter makes it, W + s B A, they compute what the head itself would, and the gradient reaches A and B.
Owns what TRL is shown. Never trains, never saves.
Source: Hu et al. 2021 (LoRA, arXiv 2106.09685), section 4.1, for the weight under an adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class AdaptedHead:
    """A head under adapters, as far as its weight [vocabulary, hidden] and bias are asked for."""

    def __init__(self, head: Any) -> None:
        self._head = head
        self.base_layer = head.base_layer

    @property
    def weight(self) -> Tensor:
        """The weight with what the adapters in use add to it; gradients go through to them."""
        weight: Tensor = self.base_layer.weight
        if self._head.merged or self._head.disable_adapters:
            return weight
        added = (self._head.get_delta_weight(name) for name in self._head.active_adapters if name in self._head.lora_A)
        return sum((delta.to(weight.dtype) for delta in added), start=weight)

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
