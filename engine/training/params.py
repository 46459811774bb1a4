"""The parameters that training steps share, under the names of TRL and transformers. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from caiflow.engine.display.trackers import Tracker
from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.model_files import HEAD
from caiflow.engine.operator import SPEED, NodeLabels, Params, RowsRef, Strict

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]


class Lora(Strict):
    """Train low-rank adapters instead of all weights."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapter matrices; more learns more and takes more memory."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale of the adapter's effect, divided by the rank; by default twice the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are zeroed while training."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get an adapter; `all-linear` takes every linear layer but the output head."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Hold the frozen weights in this many bits (QLoRA), on a GPU or a CPU; needs the bitsandbytes library."""


def adapts_head(lora: Lora) -> bool:
    """Say whether adapters are on the output head too."""
    if isinstance(lora.targets, str):
        return lora.targets != "all-linear" and re.fullmatch(lora.targets, HEAD) is not None
    return any(name.rpartition(".")[2] == HEAD for name in lora.targets)


Stage = Literal[1, 2, 3]
"""What is divided: 1 the optimizer's states, 2 gradients too, 3 weights too."""
Auto = Literal["auto"]
Elements = int | Auto | None


class FsdpConfig(Strict):
    """How a model is divided, by the names of transformers' `fsdp_config`."""

    reshard_after_forward: bool = True
    """Let go of the other workers' weights between the passes; `false` keeps them to the backward pass: faster, more memory."""
    cpu_offload: bool = False
    """Keep the divided weights, gradients and states in main memory, and take the optimizer's steps there; slow."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass; in place of `gradient_checkpointing`."""


class Offload(Strict):
    """Where something is kept between its uses."""

    device: Literal["none", "cpu"] = "cpu"
    """`cpu` keeps it in main memory."""
    pin_memory: bool = False
    """Lock that memory, for faster copies."""


class ZeroOptimization(Strict):
    """What DeepSpeed divides, and in what portions."""

    stage: Stage
    """1 divides the optimizer's states, 2 gradients too, 3 weights too."""
    offload_optimizer: Offload = Offload(device="none")
    """Keep the optimizer's states in main memory, and take its steps there, by DeepSpeed's own Adam."""
    offload_param: Offload = Offload(device="none")
    """Keep weights in main memory; for stage 3."""
    overlap_comm: bool | None = None
    """Exchange gradients while others are still computed."""
    contiguous_gradients: bool | None = None
    """Copy gradients into one buffer as they come."""
    reduce_scatter: bool | None = None
    """Give each worker its own share of a gradient alone."""
    reduce_bucket_size: Elements = None
    """Numbers of the gradients that are exchanged at once."""
    allgather_bucket_size: int | None = None
    """Numbers of the weights that are gathered at once."""
    round_robin_gradients: bool | None = None
    """Share out the copying of gradients to main memory."""
    sub_group_size: int | None = None
    """Weights whose step is taken at once, in stage 3."""
    stage3_prefetch_bucket_size: Elements = None
    """Numbers of the weights that are gathered ahead."""
    stage3_param_persistence_threshold: Elements = None
    """Weights with fewer numbers stay whole."""
    stage3_max_live_parameters: int | None = None
    """Most numbers of weights that are whole at a time."""
    stage3_max_reuse_distance: int | None = None
    """Weights that are used again within so many numbers stay whole."""
    stage3_gather_16bit_weights_on_model_save: bool | None = None
    """Put whole weights into checkpoints, too; the saved model is whole without it."""

    @model_validator(mode="after")
    def _of_its_stage(self) -> ZeroOptimization:
        if self.stage != 3 and self.offload_param.device != "none":
            raise WrongValue("`offload_param` is for stage 3, in which weights are divided", "leave it out")
        return self


class Switch(Strict):
    """A number format, which the step's `bf16` decides."""

    enabled: Auto | Literal[False] = "auto"
    """As the step has it."""


class DeepSpeed(Strict):
    """DeepSpeed's own settings, but for those that write files or start processes. What a step's fields say is `auto`.

    Its `optimizer` and `scheduler` are such fields, too.
    """

    zero_optimization: ZeroOptimization
    """What is divided (ZeRO)."""
    train_batch_size: Auto = "auto"
    """By `per_device_train_batch_size`, `gradient_accumulation_steps` and the workers."""
    train_micro_batch_size_per_gpu: Auto = "auto"
    """By `per_device_train_batch_size`."""
    gradient_accumulation_steps: Auto = "auto"
    """By the field of that name."""
    gradient_clipping: Auto = "auto"
    """By `max_grad_norm`."""
    bf16: Switch = Switch()
    """By `bf16`."""
    fp16: Switch = Switch(enabled=False)
    """Off: in float16 the steps of usual optimizers overflow."""
    steps_per_print: int | None = None
    """Steps between two of DeepSpeed's own remarks."""
    wall_clock_breakdown: Literal[False] = False
    """DeepSpeed's own timing, which is off."""

    def rounding(self) -> list[Any]:
        """Return what decides how a step rounds: the stage, and whose Adam takes it."""
        return [self.zero_optimization.stage, self.zero_optimization.offload_optimizer.device]

    def settings(self) -> dict[str, Any]:
        """Return what DeepSpeed is given."""
        return self.model_dump(exclude_none=True)


class TrainingParams(Params):
    """Fields of every step that trains with one of the libraries' trainers."""

    input: RowsRef
    """The step whose rows are trained on."""
    eval_input: RowsRef | None = None
    """The step whose rows the loss is measured on during training: none whose prompt is trained on, or the `input` itself."""
    lora: Lora | None = None
    """Train adapters of this shape; by default all weights are trained."""
    merge: bool | Literal["original"] = True
    """Fold the adapters into the weights when done; `false` saves the adapters alone. Changing it doesn't train again.

    Quantised weights are folded into as they were in training, rounded, so that the saved model is the trained one; `original`
    takes the weights as they were before, which the adapters weren't trained for. Figures tell the loss of both.
    """
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimizer steps after which training ends, whatever the epochs; -1 sets no limit."""
    learning_rate: float = Field(default=2e-5, ge=0)
    """Peak learning rate of the optimizer."""
    lr_scheduler_type: Scheduler = "linear"
    """How the learning rate goes down over the steps."""
    lr_scheduler_kwargs: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of the scheduler, such as `{num_cycles: 1}`."""
    warmup_steps: float = Field(default=0.0, ge=0)
    """Steps over which the learning rate rises to its peak; below 1 it is a share of all steps."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Rows per device in one forward pass."""
    per_device_eval_batch_size: int = Field(default=8, ge=1, json_schema_extra=SPEED)
    """Rows per device in one forward pass of an evaluation; affects speed and memory only."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes per optimizer step; the batch is this times the rows per device times the devices."""
    optim: str = "adamw_torch"
    """Optimizer, by its name in transformers."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay per step, times the learning rate."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to Adam's denominator."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 never scales."""
    max_length: int = Field(default=1024, ge=2)
    """Longest row in tokens; what exceeds it is cut off at the end, and counted."""
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    """Order of the rows: shuffled anew each epoch, as given, or shuffled with rows of like length together (less padding)."""
    eval_strategy: Literal["epoch", "steps"] = "epoch"
    """Measure the loss on `eval_input` after each epoch, or every `eval_steps`."""
    eval_steps: int = Field(default=100, ge=1)
    """Optimizer steps between two evaluations where `eval_strategy` is `steps`."""
    bf16: bool | None = None
    """Compute in bfloat16; by default where a GPU has it."""
    gradient_checkpointing: bool = Field(default=False, json_schema_extra=SPEED)
    """Compute activations again in the backward pass: less memory, about a fifth slower."""
    fsdp: bool = Field(default=False, json_schema_extra=SPEED)
    """Divide weights, gradients and states among the workers' GPUs (FSDP2), so that a model may be larger than one of them.

    Without it each worker holds all of them. It makes another model, by rounding, than the same training without it.
    """
    fsdp_config: FsdpConfig = Field(default=FsdpConfig(), json_schema_extra=SPEED)
    """How a model is divided, where `fsdp` is on."""
    node_labels: NodeLabels = Field(default_factory=dict, json_schema_extra=SPEED)
    """Labels of the cluster's nodes that may have its workers, such as `ray.io/accelerator-type: H100`."""
    deepspeed: DeepSpeed | None = Field(default=None, json_schema_extra=SPEED)
    """Divide as `fsdp` does, by DeepSpeed (ZeRO): `{zero_optimization: {stage: 3}}`; needs that library."""
    attn_implementation: str | None = Field(default=None, json_schema_extra=SPEED)
    """Attention kernel, by its name in transformers (`sdpa`, `flash_attention_2`, ...); by default the library's choice."""
    save_steps: int = Field(default=0, ge=0, json_schema_extra=SPEED)
    """Optimizer steps between two checkpoints to resume from; 0 saves about every two minutes."""
    logging_steps: int = Field(default=0, ge=0, json_schema_extra=SPEED)
    """Optimizer steps per point of the loss curve; 0 keeps about a thousand points at the most."""
    report_to: tuple[Tracker, ...] = Field(default=(), json_schema_extra=SPEED)
    """Trackers that are told the loss curve as it comes: `tensorboard`, `wandb`, `mlflow`, `trackio`; each needs its library.

    They write where the user's environment says (`MLFLOW_TRACKING_URI`, `WANDB_API_KEY`, ...), else into `trackers` in the
    store's home. A training that is there already isn't made again for it.
    """

    own_fields: ClassVar[frozenset[str]] = frozenset()
    """Subclasses name the further fields that the trainer's own configuration takes under the same name."""

    @model_validator(mode="after")
    def _rounded(self) -> Self:
        if not (self.merge or self.lora):
            object.__setattr__(self, "merge", True)
        if self.merge == "original" and not (self.lora and self.lora.quantization):
            raise WrongValue("`merge: original` is for `lora.quantization`, without which all weights are", "leave it out")
        return self

    @property
    def division(self) -> str | None:
        """The field that divides the model among workers; None where each holds it whole."""
        return "fsdp" if self.fsdp else "deepspeed" if self.deepspeed else None

    @property
    def stage(self) -> int:
        """What is divided: 1 the optimizer's states, 2 gradients too, 3 weights too; 0 is nothing."""
        return 3 if self.fsdp else self.deepspeed.zero_optimization.stage if self.deepspeed else 0

    def row_steps(self) -> tuple[str, ...]:
        """Return the steps whose rows are read, training rows first."""
        return (self.input,) if self.eval_input is None else (self.input, self.eval_input)


TRAINER_FIELDS = (
    frozenset(TrainingParams.model_fields)
    - frozenset(Params.model_fields)
    - {
        "input",
        "eval_input",
        "lora",
        "merge",
        "eval_strategy",
        "max_length",
        "attn_implementation",
        "save_steps",
        "logging_steps",
        "report_to",
        "bf16",
        "fsdp",
        "fsdp_config",
        "node_labels",
        "deepspeed",
    }
)
"""Fields that go to the trainer's configuration as they are."""
