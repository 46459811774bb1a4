"""The preference model: learns from comparisons to give each reply a score."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from caiflow.engine.errors import WrongValue
from caiflow.engine.operator import Job, ModelRef
from caiflow.engine.training import health
from caiflow.engine.training.memory import Load
from caiflow.engine.training.operator import TrainingOperator
from caiflow.engine.training.params import TrainingParams
from caiflow.operators.measures.pictures import draw_reliability

if TYPE_CHECKING:
    from datasets import Dataset

    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.rows.folder import Rows
    from caiflow.engine.training.sampled import Sampled
    from caiflow.engine.training.saving import Measure
    from caiflow.engine.training.tokens import Tokens

RELIABILITY = "_reliability.json"
"""The bins of the reliability figure, beside the saved model."""
RELIABILITY_PICTURE = "_reliability.png"
"""The figure itself, where matplotlib is installed."""


class RewardParams(TrainingParams):
    """Fields of `op: reward`."""

    model: ModelRef
    """The language model to start from; its output head is replaced by one score."""
    labels: Literal["soft", "hard"] = "soft"
    """Learn `p_chosen` itself, or take the chosen reply as better for certain."""
    learning_rate: float = Field(default=1e-5, ge=0)
    """Peak learning rate of the optimizer."""
    center: bool = True
    """Shift the scores to mean 0 over the rows of `eval_input`, or of `input` where there is none."""
    center_rewards_coefficient: float | None = Field(default=None, ge=0)
    """Weight of a loss term that keeps the scores near 0 while training; 0.01 is usual, none by default."""
    calibration_bins: int = Field(default=10, ge=2)
    """Bins of predicted probability behind the calibration error and the reliability figure.

    The figure's data is `_reliability.json` beside the model, its picture `_reliability.png` (with the extra `plots`).
    """

    own_fields: ClassVar[frozenset[str]] = frozenset({"center_rewards_coefficient"})

    @model_validator(mode="after")
    def _whole(self) -> RewardParams:
        if not self.merge:
            raise WrongValue("a reward model is saved whole", "leave `merge` out")
        return self


_HEAD = 2
"""Raised when training a score head beside adapters comes to other weights."""


class Reward(TrainingOperator[RewardParams]):
    """Train a reward model on preferences (rows with `prompt`, `chosen`, `rejected` and maybe `p_chosen`)."""

    name = "reward"
    params_type = RewardParams
    task = "reward"
    watched = (health.falling_loss, health.preferences)

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the two replies; `p_chosen` is taken as 1 where it is missing."""
        return {step: ["chosen", "rejected"] for step in self.params.row_steps()}

    def identity(self) -> Mapping[str, Any]:
        """Return beside the rest how a head learns beside adapters."""
        return {**super().identity(), **({"head": _HEAD} if self.params.lora else {})}

    def at_once(self) -> Load:
        """Return both replies of each pair, which one score reads."""
        return Load(2 * self.params.per_device_train_batch_size, self.params.max_length, head=False)

    def handed_on(self, tool: str, step: str, made: Path) -> Iterator[tuple[str, str | Path]]:
        """Yield the model, and its centred score as a reward function."""
        if tool == "reward":
            from caiflow.operators.handed_on.reward_functions import of_a_model

            yield f"{step}.py", of_a_model(step)
            yield step, made

    def learn(self, job: Job) -> None:
        """Train on the input's preferences; save the model with its mean score, the loss curve and the reliability bins."""
        from transformers import set_seed
        from trl import RewardConfig

        from caiflow.engine.llm.render import Renderer
        from caiflow.engine.training.loop import configure, fit, seed_of
        from caiflow.engine.training.models import load_model, load_tokenizer, lora_config
        from caiflow.engine.training.saving import Trained, save
        from caiflow.operators.training.preference_model import SoftReward, SoftRewardCollator
        from caiflow.operators.training.scoring import MEAN

        params = self.params
        source = job.models[params.model]
        tokenizer = load_tokenizer(source)
        renderer = Renderer(tokenizer)
        train, held_out = self.read_rows(job, lambda rows, sampled: self._tokens(rows, renderer, sampled))
        set_seed(seed_of(job))  # the score head begins with random weights
        model = load_model(source, params, task="reward")
        trainer = SoftReward(
            model=model,
            args=configure(RewardConfig, params, job, rows=len(train), max_length=None, remove_unused_columns=False),
            data_collator=SoftRewardCollator(pad_token_id=tokenizer.pad_token_id),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=lora_config(params.lora, model, "reward") if params.lora else None,
        )
        fit(trainer, params, job)
        if trainer.is_world_process_zero():
            mean = self._quality(job, trainer.model, train if held_out is None else held_out, tokenizer.pad_token_id)
            measure = self._measure(train, trainer.state.global_step, tokenizer.pad_token_id)
            save(Trained(trainer.model, tokenizer, source, measure, "reward", {MEAN: mean}), params, job)

    def _measure(self, data: Dataset, steps: int, pad_id: int) -> Measure:
        """Return the loss on some pairs."""
        from caiflow.engine.training.saving import some_rows
        from caiflow.operators.training.scoring import PairLoss

        return PairLoss(some_rows(data, self.params, steps).to_list(), pad_id, self.params.per_device_eval_batch_size)

    def measuring(self, how: Mapping[str, Any]) -> Measure:
        """Return the loss on the pairs that were recorded."""
        from caiflow.operators.training.scoring import PairLoss

        return PairLoss(**how)

    def _quality(self, job: Job, model: Any, data: Dataset, pad_id: int) -> float:
        """Put the model's quality on `data` into the metrics; return the score that becomes 0."""
        from caiflow.operators.training.scoring import pair_scores, quality

        chosen, rejected = pair_scores(model, data, pad_id, self.params.per_device_eval_batch_size)
        found = quality(chosen, rejected, list(data["p_chosen"]), self.params.calibration_bins)
        bins = found.pop("bins")
        mean = sum(chosen + rejected) / (2 * len(data))
        text = json.dumps({"ece": found["ece"], "bins": bins}, indent=1)
        (job.out_dir / RELIABILITY).write_text(text, encoding="utf-8")
        draw_reliability(bins, found["ece"], job.out_dir / RELIABILITY_PICTURE)
        job.metrics |= {
            **found,
            "mean_reward": mean,
            "measured_on": "input" if self.params.eval_input is None else "eval_input",
        }
        return mean if self.params.center else 0.0

    def _tokens(self, rows: Rows, renderer: Renderer, sampled: Sampled) -> Tokens:
        from caiflow.engine.training.tokens import preferences

        tokens = preferences(rows, renderer, max_length=self.params.max_length, sampled=sampled)
        if self.params.labels == "soft":
            return tokens
        data = tokens.data
        return replace(tokens, data=data.remove_columns("p_chosen").add_column("p_chosen", [1.0] * len(data)))
