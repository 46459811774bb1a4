"""DPO with soft labels, on top of the library's trainer.

A row with `p_chosen` = p has the loss p * L(chosen, rejected) + (1 - p) * L(rejected, chosen), whatever variant L is. Owns what
is done with a batch of such rows; with hard labels, nothing of the library's computation changes.
Source: the soft target is that of Bai et al. 2022 (arXiv 2212.08073), section 4.3, put into Rafailov et al. 2023 (2305.18290).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from caiflow.engine.training.loop import Quiet
from caiflow.engine.training.private import TokenisedPairs
from caiflow.operators.training.pair_losses import Replies, likelihood_weights, score_of, sequence_logps, soft_loss


@dataclass
class SoftCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Adds `p_chosen` ([B] float32) to the library's batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the padded batch: the chosen sequences, then the rejected ones."""
        batch: dict[str, Any] = super().torch_call(examples)
        batch["p_chosen"] = torch.tensor([example["p_chosen"] for example in examples])
        return batch


class SoftDPO(Quiet, TokenisedPairs, DPOTrainer):  # type: ignore[misc]
    """The library's DPO over rows that are tokenised already; `soft` weighs both orders of each pair by `p_chosen`.

    With `reference_free`, the reference gives every reply the same log-probability, 0; it needs `precompute_ref_log_probs`.
    """

    def __init__(self, *args: Any, soft: bool = False, reference_free: bool = False, **options: Any) -> None:
        self.soft = soft
        self.reference_free = reference_free
        super().__init__(*args, **options)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return the reference's log-probabilities of the chosen and of the rejected replies, [B] float32 each."""
        return super().compute_ref_log_probs(model, {name: value for name, value in inputs.items() if name != "p_chosen"})

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss over the pairs of a batch; the logged figures are those of the pairs in their own order."""
        inputs = dict(inputs)
        p = inputs.pop("p_chosen")
        if not self.soft:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = self._outputs(model, inputs)
        mask = inputs["completion_mask"][:, 1:]
        logps = sequence_logps(outputs.log_probs, mask, self.args.ld_alpha).chunk(2)
        tokens = inputs["completion_mask"].sum(1).chunk(2)
        log_ratios = [mine - theirs for mine, theirs in zip(logps, self._reference(inputs), strict=True)]
        chosen, rejected = (
            Replies(log_ratio, score_of(log_ratio, self.args), n) for log_ratio, n in zip(log_ratios, tokens, strict=True)
        )
        losses = soft_loss(chosen, rejected, p, self.args)
        if self.args.use_weighting:
            losses = losses * likelihood_weights(outputs.log_probs, outputs.log_sum_sq_probs, mask)
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
            self.note({"aux_loss": self._mean(outputs.aux_loss)})
        self._note_tokens(outputs, mask.bool())
        self._note_replies(*log_ratios, *logps)
        return (loss, outputs) if return_outputs else loss

    def _reference(self, inputs: dict[str, Any]) -> Any:
        if "ref_chosen_logps" in inputs:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        return self.compute_ref_log_probs(self.ref_model or self.model, inputs)

    def _outputs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return the model's outputs for the batch; both orders of the pairs are computed from this one pass."""
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        tensors = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        return model(**tensors, **extra, labels=labels, use_cache=False, fused_lm_head=True)

    def _note_tokens(self, outputs: Any, mask: torch.Tensor) -> None:
        chosen, rejected = mask.chunk(2)
        logits = outputs.mean_logits.chunk(2)
        self.note(
            {
                "entropy": self._mean(outputs.entropy[mask]),
                "logits/chosen": self._mean(logits[0][chosen]),
                "logits/rejected": self._mean(logits[1][rejected]),
                "mean_token_accuracy": self._mean(outputs.is_top1.chunk(2)[0][chosen]),
            }
        )

    def _note_replies(self, *tensors: torch.Tensor) -> None:
        """Note the means of the log-ratios, as rewards, and of the log-probabilities: chosen, rejected, chosen, rejected."""
        chosen, rejected = self.beta * tensors[0], self.beta * tensors[1]
        self.note(
            {
                "rewards/chosen": self._mean(chosen),
                "rewards/rejected": self._mean(rejected),
                "rewards/accuracies": self._mean(chosen > rejected),
                "rewards/margins": self._mean(chosen - rejected),
                "logps/chosen": self._mean(tensors[2]),
                "logps/rejected": self._mean(tensors[3]),
            }
        )

    def _mean(self, values: torch.Tensor) -> float:
        """Return the mean over the values of all processes, of which each may have another number."""
        values = values.detach().float()
        total = torch.stack([values.sum(), torch.ones_like(values).sum()])
        whole, count = self.accelerator.reduce(total, "sum").tolist()
        return float(whole / max(count, 1.0))


def softened(p: float, smoothing: float) -> float:
    """Return a label moved towards its opposite: the chosen reply is the worse one with probability `smoothing`."""
    return p * (1 - smoothing) + (1 - p) * smoothing
