"""What a spec says of `rl`: the algorithm, how replies are drawn, and what scores them. Trains nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from caiflow.engine.errors import WrongValue
from caiflow.engine.operator import SPEED, ModelRef, ModelRefOrName, Strict
from caiflow.engine.training.params import TrainingParams
from caiflow.operators.grading.params import ModelGrading, columns
from caiflow.operators.judging.params import GroupJudging, wrong_group

ONLY: Mapping[str, frozenset[str]] = {
    "loss_type": frozenset({"grpo"}),
    "scale_rewards": frozenset({"grpo"}),
    "importance_sampling_level": frozenset({"grpo"}),
    "use_vllm": frozenset({"grpo"}),
    "vllm_gpu_memory_utilization": frozenset({"grpo"}),
    "normalize_advantages": frozenset({"rloo"}),
    "reward_clip_range": frozenset({"rloo"}),
    "epsilon_high": frozenset({"grpo", "rloo"}),
    "mask_truncated_completions": frozenset({"grpo", "rloo"}),
    "gamma": frozenset({"ppo"}),
    "lam": frozenset({"ppo"}),
    "vf_coef": frozenset({"ppo"}),
    "cliprange_value": frozenset({"ppo"}),
}
"""Fields that only some algorithms have."""


class RewardBy(Strict):
    """What scores a reply beside reward models, and how much that counts."""

    grader: ModelGrading | None = None
    """A model that is asked about each reply, as in `evaluate`; its grade is the score."""
    judge: GroupJudging | None = None
    """A model that is asked which of two replies to a prompt is better, or to rank all; what one wins is its score (0..1)."""
    weight: float = 1.0
    """Weight of the score; below 0 for what isn't wanted, 0 for what is only looked at."""

    @model_validator(mode="after")
    def _one(self) -> RewardBy:
        if (self.grader is None) == (self.judge is None):
            raise WrongValue("a score is a `grader`'s or a `judge`'s", "give one of the two")
        return self

    @property
    def asked(self) -> str:
        """The model that is asked."""
        return (self.grader or self.judge).model  # type: ignore[union-attr]


_EXAMPLE: Mapping[str, Any] = {
    "op": "rl",
    "input": "red_team",
    "model": "sl_cai",
    "algorithm": "grpo",
    "num_generations": 8,
    "max_steps": 200,
    "rewards": {
        "reward_model": 1,
        "kind": {"weight": 0.5, "grader": {"model": "base", "question": "{{ conversation }} Is that kind? Answer Yes or No."}},
        "better": {"judge": {"model": "base", "opponents": 2}},
    },
    "length_penalty": 0.001,
}


class RlParams(TrainingParams):
    """Fields of `op: rl`."""

    model_config = ConfigDict(json_schema_extra={"examples": [dict(_EXAMPLE)]})

    model: ModelRef
    """The model to train; as it is before training, it is also the one that it is held near."""
    rewards: Mapping[ModelRefOrName, float | RewardBy] = Field(min_length=1)
    """What scores replies: reward models with their weights, and names of your own with a `grader` or a `judge` each."""
    gold: str | None = None
    """One of `rewards`, of weight 0, that is better trusted than the others: where it falls while they don't is said."""
    algorithm: Literal["grpo", "rloo", "ppo"] = "ppo"
    """Compare replies to one prompt with their mean (grpo) or with each other (rloo), or learn values of tokens (ppo)."""
    learning_rate: float = Field(default=1e-6, ge=0)
    """Peak learning rate of the optimizer."""
    beta: float = Field(default=0.02, ge=0)
    """Weight of the divergence (KL) from the model as it was; part of the reward, in grpo of the loss."""
    num_generations: int | None = Field(default=None, ge=1)
    """Replies per prompt; by default 8, in ppo 1."""
    max_completion_length: int = Field(default=256, ge=1)
    """Longest reply in tokens; with the prompt it must fit into `max_length`, or the prompt is left out and counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of the replies."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass that replies are drawn from."""
    top_k: int = Field(default=0, ge=0)
    """Number of most likely tokens that replies are drawn from; 0 takes all."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Divides the score of tokens already seen; 1 is off."""
    steps_per_generation: int | None = Field(default=None, ge=1)
    """Batches that are generated at once and then trained on one by one; by default `gradient_accumulation_steps`."""
    num_iterations: int | None = Field(default=None, ge=1)
    """Passes over the replies before new ones are generated; by default 1, in ppo 4."""
    epsilon: float = Field(default=0.2, gt=0)
    """How far a probability may move per rollout before its gradient is cut off."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """The same upwards; by default as downwards. For grpo and rloo."""
    length_free: int = Field(default=0, ge=0)
    """Tokens of a reply that `length_penalty` doesn't count."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward for each token beyond `length_free`."""
    unended_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward of a reply that is cut off at `max_completion_length`."""
    mask_truncated_completions: bool = False
    """Don't learn from replies that are cut off. For grpo and rloo."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    """How grpo averages over tokens, by its name in TRL."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What grpo divides advantages by: the spread among the prompt's replies, among the batch's, or nothing."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether grpo clips the probability of tokens or of whole replies."""
    use_vllm: bool = Field(default=False, json_schema_extra=SPEED)
    """Have vLLM draw grpo's replies, beside the model that learns: faster on a GPU, and other replies than without."""
    vllm_gpu_memory_utilization: float = Field(default=0.3, gt=0, lt=1, json_schema_extra=SPEED)
    """The part of the GPU's memory that vLLM has for itself, its own weights among it, where `use_vllm` is on."""
    normalize_advantages: bool = False
    """Give rloo's advantages mean 0 and standard deviation 1 over the batch."""
    reward_clip_range: tuple[float, float] | None = None
    """Lowest and highest reward in rloo; by default any."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token in ppo; 1 is none."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """How far ppo's advantages look ahead: 0 one token, 1 to the end."""
    vf_coef: float = Field(default=0.1, ge=0)
    """Weight of the value head's loss in ppo."""
    cliprange_value: float = Field(default=0.2, gt=0)
    """How far a value may move per rollout before its gradient is cut off, in ppo."""

    own_fields: ClassVar[frozenset[str]] = frozenset(
        {"beta", "max_completion_length", "temperature", "top_p", "top_k", "repetition_penalty", "epsilon"}
        | {"steps_per_generation"}
    )

    @property
    def asking(self) -> dict[str, RewardBy]:
        """The rewards that models are asked for, by their names."""
        return {name: how for name, how in self.rewards.items() if isinstance(how, RewardBy)}

    @property
    def judges(self) -> dict[str, GroupJudging]:
        """The judges by the names of their rewards."""
        return {name: how.judge for name, how in self.asking.items() if how.judge}

    @property
    def by_principles(self) -> Collection[str]:
        """The texts for judges, where one takes some from the constitution."""
        return ("judge",) if any(how.asks_for_principles for how in self.judges.values()) else ()

    @property
    def weights(self) -> dict[str, float]:
        """The weights of all rewards by their names."""
        return {name: how.weight if isinstance(how, RewardBy) else how for name, how in self.rewards.items()}

    @property
    def reward_models(self) -> list[str]:
        """The reward models."""
        return [name for name in self.rewards if name not in self.asking]

    @property
    def asked_with(self) -> list[str]:
        """The columns of a prompt's row that are asked with, beside the conversation."""
        named = {name for how in self.asking.values() if how.grader for name in columns(how.grader)}
        return sorted(named | {how.against for how in self.judges.values() if how.against})

    @property
    def generations(self) -> int:
        """Replies per prompt."""
        return self.num_generations or (1 if self.algorithm == "ppo" else 8)

    @property
    def iterations(self) -> int:
        """Passes over the replies."""
        return self.num_iterations or (4 if self.algorithm == "ppo" else 1)

    @property
    def batches(self) -> int:
        """Batches that are generated at once."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def cycle(self) -> int:
        """Optimizer steps from one generation to the next; only between them can a run be resumed."""
        return self.batches * self.iterations // self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _consistent(self) -> RlParams:
        for name in sorted(self.model_fields_set & set(ONLY)):
            if self.algorithm not in ONLY[name]:
                raise WrongValue(
                    f"`{name}` is for {' and '.join(sorted(ONLY[name]))}, got `algorithm: {self.algorithm}`", "leave it out"
                )
        if self.algorithm != "ppo" and self.generations < 2:
            raise WrongValue(f"{self.algorithm} compares replies to one prompt", "give `num_generations` of 2 or more")
        if self.per_device_train_batch_size * self.batches % self.generations:
            raise ValueError(
                "`per_device_train_batch_size` times `steps_per_generation` must be a multiple of `num_generations`, got "
                f"{self.per_device_train_batch_size} x {self.batches} and {self.generations}"
            )
        if self.batches * self.iterations % self.gradient_accumulation_steps:
            raise ValueError(
                "`steps_per_generation` times `num_iterations` must be a multiple of `gradient_accumulation_steps`"
            )
        if self.max_completion_length >= self.max_length:
            raise ValueError("`max_completion_length` leaves no room for a prompt within `max_length`")
        for name, judge in self.judges.items():
            wrong_group(name, judge, self.generations)
        if self.gold is not None:
            self._check_gold(self.gold)
        return self

    def _check_gold(self, name: str) -> None:
        if self.weights.get(name) != 0:
            raise WrongValue(f"`gold` names one of `rewards` that has weight 0, got {name!r}", "add it there with `weight: 0`")
        if name in self.judges and not self.judges[name].against:
            raise WrongValue(
                f"`gold: {name}` compares replies with each other, which is a half on the mean however good they are",
                "name a column that it judges `against`",
            )

    def library_fields(self) -> dict[str, Any]:
        """Return the fields of the algorithm that go to the library's configuration as they are."""
        names = {name for name, of in ONLY.items() if self.algorithm in of and self.algorithm != "ppo" and "vllm" not in name}
        fields = {name: getattr(self, name) for name in names}
        weights = [*self.weights.values(), 1.0]  # the last one is that of the length
        return {**fields, "reward_weights": weights, "num_iterations": self.iterations}
