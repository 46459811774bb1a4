"""The library's reward trainer with a soft target: cross-entropy against `p_chosen`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from caiflow.engine.training.loop import Quiet


@dataclass
class SoftRewardCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Puts prompt and reply together and adds `p_chosen` ([B] float32) to the library's batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the padded batch: the chosen conversations, then the rejected ones."""
        joined = [{side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in examples]
        batch: dict[str, Any] = super().torch_call(joined)
        batch["p_chosen"] = torch.tensor([row["p_chosen"] for row in examples])
        return batch


class SoftReward(Quiet, RewardTrainer):  # type: ignore[misc]
    """The library's reward trainer over rows that are tokenised already.

    A pair with label p and margin d = r(chosen) - r(rejected) costs -p log s(d) - (1 - p) log s(-d), s the logistic function.
    Source: Bai et al. 2022 (arXiv 2212.08073), section 4.3.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss over the pairs of a batch.

        -log s(-d) = -log s(d) + d, so the soft loss is the library's hard one plus (1 - p) d.
        """
        inputs = dict(inputs)
        p = inputs.pop("p_chosen")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        loss = loss + ((1 - p) * (chosen - rejected)).mean()
        return (loss, outputs) if return_outputs else loss
