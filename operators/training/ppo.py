"""Proximal policy optimisation with a value head, over the rollouts, rewards and checkpoints of the library's RLOO trainer.

The library dropped its own PPO, and no maintained one runs on a CPU; the algorithm is short once rollouts are there. Owns the
value head and the trainer that puts `ppo_formulas` together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from trl import RLOOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import pad, use_adapter

from caiflow.engine.training.private import OwnObjective
from caiflow.operators.training.ppo_formulas import advantages_of, masked_mean, policy_loss, shaped_rewards, value_loss, whiten
from caiflow.operators.training.rollouts import Rollouts

VALUE_HEAD = "value_head"


def add_value_head(model: Any) -> None:
    """Give a language model a head that reads a value off each hidden state; it begins at 0 everywhere."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    setattr(model, VALUE_HEAD, head)


def remove_value_head(model: Any) -> None:
    """Take the head off again, from under adapters too, so that the saved model is a plain language model."""
    for config in getattr(model, "peft_config", {}).values():
        config.modules_to_save = None
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if hasattr(base, VALUE_HEAD):
        delattr(base, VALUE_HEAD)


@dataclass(frozen=True, slots=True)
class Settings:
    """PPO's own settings: discount, GAE's decay, weight of the value loss, and how far values move per rollout."""

    gamma: float = 1.0
    lam: float = 0.95
    vf_coef: float = 0.1
    cliprange_value: float = 0.2


class PPO(Rollouts, OwnObjective, RLOOTrainer):  # type: ignore[misc]
    """PPO over the library's rollouts; the model must have a value head (`add_value_head`)."""

    def __init__(self, *, model: Any, settings: Settings, **options: Any) -> None:
        self.settings = settings
        self._hidden: Tensor | None = None
        model.base_model.register_forward_hook(self._keep_hidden)
        super().__init__(model=model, **options)

    def _keep_hidden(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state

    def roll_out(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return replies with the rewards, advantages, values and log-probabilities that they had when they were drawn."""
        prompts = [row["prompt"] for row in inputs]
        prompt_ids, completion_ids, completions = self.draw(prompts)
        batch = self._padded(prompt_ids, completion_ids)
        mask = batch["completion_mask"]
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logps, values, _ = self._read(batch)
            log_ratio = (logps - self._reference_logps(batch)) * mask
        scores = self._scores(inputs, prompts, completions, completion_ids)
        if self.model.training and self.state.global_step == 0:
            values = values + self._expect(scores)
        rewards = shaped_rewards(scores, log_ratio, mask, self.beta)
        advantages, returns = advantages_of(rewards, values * mask, mask, self.settings.gamma, self.settings.lam)
        self._note(kl=masked_mean(log_ratio, mask), sequence_kl=log_ratio.sum(1).mean(), value=masked_mean(values, mask))
        old = {"old_logps": logps, "old_values": values, "returns": returns}
        return {**batch, **old, "advantages": whiten(advantages, mask)}

    def _expect(self, scores: Tensor) -> Tensor:
        """Have the value head begin at the first replies' mean score, and return that mean.

        From 0, every advantage would hold the whole score, most at the last tokens and least at the first: the first, which
        decide what a reply does, would be unlearnt whatever they are for as long as the head takes to get there.
        """
        mean: Tensor = self.accelerator.gather(scores).mean()
        head = getattr(self.accelerator.unwrap_model(self.model), VALUE_HEAD)
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                if name.endswith("bias"):
                    parameter.fill_(mean)
        return mean

    def _padded(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> dict[str, Tensor]:
        batch = {}
        for name, sequences, side in (("prompt", prompt_ids, "left"), ("completion", completion_ids, "right")):
            ids = [torch.tensor(sequence) for sequence in sequences]
            ones = [torch.ones_like(sequence) for sequence in ids]
            batch[f"{name}_ids"] = pad(ids, padding_value=self.renderer.tokenizer.pad_token_id, padding_side=side)
            batch[f"{name}_mask"] = pad(ones, padding_value=0, padding_side=side)
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _read(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities, values and entropies of the replies' tokens, [B, T] each.

        A token's value is read off the state it was drawn from.
        """
        logps, entropies = self._logps(self.model_wrapped if self.model.training else self.model, batch)
        assert self._hidden is not None
        hidden = self._hidden[:, -logps.size(1) - 1 : -1]
        head = getattr(self.accelerator.unwrap_model(self.model), VALUE_HEAD)
        values = head(hidden.float()).squeeze(-1)
        self._hidden = None
        return logps.float(), values.float(), entropies

    def _logps(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        length = batch["completion_ids"].size(1)
        return self.token_logps(model, ids, seen, length, entropies=model is not self.ref_model)

    def _reference_logps(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the log-probabilities under the model that training began with; under the present one where beta is 0."""
        if self.ref_model is not None:
            return self._logps(self.ref_model, batch)[0]
        if self.beta == 0.0:
            return self._logps(self.model, batch)[0]
        with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
            return self._logps(self.model, batch)[0]

    def _scores(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        """Return this process's weighted sum of rewards [B], and note their means over all processes."""
        parts = self.rewards(inputs, prompts, completions, completion_ids)
        total = (parts * self.reward_weights.to(parts.device)).nansum(1)
        means = {f"rewards/{name}/mean": parts[:, place].nanmean() for place, name in enumerate(self.reward_func_names)}
        self._note(**means, reward=total.mean(), reward_std=total.std(unbiased=False))
        first = self.accelerator.process_index * len(prompts)
        mine: Tensor = total[first : first + len(prompts)]
        return mine

    def compute_loss(self, _model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Return the policy's loss plus the weighted one of the values."""
        mask = inputs["completion_mask"]
        logps, values, entropies = self._read(inputs)
        policy, clipped = policy_loss(logps, inputs["old_logps"], inputs["advantages"], mask, self.epsilon_low)
        error = value_loss(values, inputs["old_values"], inputs["returns"], mask, self.settings.cliprange_value)
        entropy = masked_mean(entropies, mask)
        self._note(policy_loss=policy, value_loss=error, clip_ratio=clipped, entropy=entropy)
        return policy + self.settings.vf_coef * error

    def _note(self, **figures: Tensor) -> None:
        means = {name: self.accelerator.gather(value.detach().float()).mean().item() for name, value in figures.items()}
        self.note(means)
