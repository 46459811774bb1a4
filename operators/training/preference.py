"""DPO with soft labels, on top of the library's trainer and its own loss variants.

A row with `p_chosen` = p has the loss p * L(chosen, rejected) + (1 - p) * L(rejected, chosen), whatever variant L is. Owns the
weighing only; with hard labels, nothing of the library's computation changes.
Source: the soft target is that of Bai et al. 2022 (arXiv 2212.08073), section 4.3, put into Rafailov et al. 2023 (2305.18290).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from caiflow.engine.training.loop import Quiet

if TYPE_CHECKING:
    from datasets import Dataset

PER_PAIR_LOSSES = frozenset(
    {"sigmoid", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down"}
    | {"discopop", "sigmoid_norm"}
)
"""Loss variants in which a pair can be weighed: `aot` sorts the batch, `sft` counts tokens, and the library multiplies the
output of `hinge` in place, which its gradient doesn't survive."""


@dataclass
class SoftCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Adds `p_chosen` ([B] float32) to the library's batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the padded batch: the chosen sequences, then the rejected ones."""
        batch: dict[str, Any] = super().torch_call(examples)
        batch["p_chosen"] = torch.tensor([example["p_chosen"] for example in examples])
        return batch


class SoftDPO(Quiet, DPOTrainer):  # type: ignore[misc]
    """The library's DPO over rows that are tokenised already; `soft` weighs both orders of each pair by `p_chosen`.

    With `reference_free`, the reference gives every reply the same log-probability, 0; it needs `precompute_ref_log_probs`.
    """

    _metrics: dict[str, Any]
    _total_train_tokens: float
    use_weighting: bool
    precompute_ref_logps: bool

    def __init__(self, *args: Any, soft: bool = False, reference_free: bool = False, **options: Any) -> None:
        self.soft = soft
        self.reference_free = reference_free
        super().__init__(*args, **options)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "p_chosen" not in self._signature_columns:
            self._signature_columns.append("p_chosen")

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if not self.reference_free:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        zeros = [0.0] * len(dataset)
        return dataset.add_column("ref_chosen_logps", zeros).add_column("ref_rejected_logps", zeros)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return the reference's log-probabilities of the chosen and of the rejected replies, [B] float32 each."""
        return super().compute_ref_log_probs(model, {name: value for name, value in inputs.items() if name != "p_chosen"})

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        inputs = dict(inputs)
        p = inputs.pop("p_chosen")
        if not self.soft:
            return super()._compute_loss(model, inputs, return_outputs)
        inputs |= self._reference(inputs)
        outputs = self._outputs(model, inputs)
        loss = self._weighed(outputs, inputs, p)
        kept, tokens = self._metrics, self._total_train_tokens
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        loss = loss + self._weighed(_swapped(outputs), _swapped(inputs), 1 - p)
        self._metrics, self._total_train_tokens = kept, tokens
        return (loss, outputs) if return_outputs else loss

    def _reference(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        if "ref_chosen_logps" in inputs:
            return {}
        chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def _outputs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return the model's outputs for the batch; both orders of the pairs are computed from this one pass."""
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        tensors = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        return model(**tensors, **extra, labels=labels, use_cache=False, fused_lm_head=True)

    def _weighed(self, outputs: Any, inputs: dict[str, Any], weight: torch.Tensor) -> torch.Tensor:
        """Return the mean over pairs of weight times loss, `weight` [B].

        The library multiplies each pair's loss by exp(mean over tokens of log_probs - log_sum_sq_probs), its WPO weight, for
        the chosen and for the rejected reply. With log_sum_sq_probs = log_probs - log(weight) on the chosen reply's tokens, and
        = log_probs on the rejected one's, that product is the pair's weight: exactly 1 for 1 and 0 for 0.
        """
        mask = inputs["completion_mask"][:, 1:].bool()
        shift = torch.cat([weight.log(), torch.zeros_like(weight)])[:, None]
        base = outputs.log_sum_sq_probs if self.args.use_weighting else outputs.log_probs.detach()
        moved = _with(outputs, log_sum_sq_probs=torch.where(mask, base - shift, base))
        before = self.use_weighting, self.precompute_ref_logps
        self.use_weighting = self.precompute_ref_logps = True
        try:
            loss: torch.Tensor = super()._compute_loss(lambda **_: moved, inputs, False)
            return loss
        finally:
            self.use_weighting, self.precompute_ref_logps = before


def _with(outputs: Any, **changes: Any) -> Any:
    return type(outputs)(**{**outputs, **changes})


def _swapped(batch: Any) -> Any:
    """Return a batch or its outputs with chosen and rejected exchanged; the rows of tensors are chosen first, rejected next."""
    turned = {name: _turned(name, value) for name, value in batch.items()}
    if "ref_chosen_logps" in turned:
        turned["ref_chosen_logps"], turned["ref_rejected_logps"] = batch["ref_rejected_logps"], batch["ref_chosen_logps"]
    return turned if isinstance(batch, dict) and type(batch) is dict else type(batch)(**turned)


def _turned(name: str, value: Any) -> Any:
    if name == "aux_loss":  # counted with the pairs in their own order
        return torch.zeros_like(value)
    return value.roll(len(value) // 2, 0) if isinstance(value, torch.Tensor) and value.dim() else value


def softened(p: float, smoothing: float) -> float:
    """Return a label moved towards its opposite: the chosen reply is the worse one with probability `smoothing`."""
    return p * (1 - smoothing) + (1 - p) * smoothing
