"""Direct preference optimisation: a model learns to prefer the chosen replies, by as much as their labels say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from caiflow.engine.errors import Finding, StepError, WrongValue
from caiflow.engine.operator import SPEED, Job, ModelRef
from caiflow.engine.training import health
from caiflow.engine.training.memory import Beside, Load
from caiflow.engine.training.operator import TrainingOperator
from caiflow.engine.training.params import TrainingParams

if TYPE_CHECKING:
    from datasets import Dataset

    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.rows.columns import Columns
    from caiflow.engine.rows.folder import Rows
    from caiflow.engine.training.sampled import Sampled
    from caiflow.engine.training.saving import Measure
    from caiflow.engine.training.tokens import Tokens

Loss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
OWN_SMOOTHING = frozenset({"robust", "exo_pair", "aot", "aot_unpaired"})
OF_BATCHES = frozenset({"sft", "aot", "aot_unpaired"})
"""Losses that aren't a mean over pairs, so that none can be weighed by its label."""
_HARD = "set `labels: hard`, or use another loss"


class DpoParams(TrainingParams):
    """Fields of `op: dpo`."""

    model: ModelRef
    """The model to train; unless `reference` is given, it is the reference too, as it is before training."""
    reference: ModelRef | None = None
    """Another model that the trained one is held near."""
    reference_free: bool = False
    """Hold the model near no reference: only its own log-probabilities count."""
    learning_rate: float = Field(default=1e-6, ge=0)
    """Peak learning rate of the optimizer."""
    labels: Literal["soft", "hard"] = "soft"
    """Weigh both orders of a pair by `p_chosen` and 1 - `p_chosen`, or take the chosen reply as better for certain."""
    beta: float = Field(default=0.1, gt=0)
    """How closely the model is held to the reference; higher is closer."""
    loss_type: Loss | tuple[Loss, ...] = "sigmoid"
    """Loss variant, by its name in TRL; several are added up."""
    loss_weights: tuple[float, ...] | None = None
    """Weight of each of several losses; by default 1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is the wrong way round; `robust` and `exo_pair` use it their own way."""
    precompute_ref_log_probs: bool = Field(default=False, json_schema_extra=SPEED)
    """Ask the reference once before training, so that it needn't stay in memory."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """Which divergence from the reference is held small."""
    f_alpha_divergence_coef: float = 0.5
    """Exponent of the alpha divergence."""
    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of the tokens by which the longer reply exceeds the shorter; below 1 it curbs growth in length."""
    use_weighting: bool = False
    """Weigh each pair by how likely the model finds it (WPO)."""
    discopop_tau: float = Field(default=0.05, gt=0)
    """Temperature of the `discopop` loss."""
    sync_ref_model: bool = False
    """Move the reference towards the model while training (TR-DPO); not with `lora`."""
    ref_model_mixup_alpha: float = Field(default=0.6, ge=0, le=1)
    """Share of the model in the reference at each such move."""
    ref_model_sync_steps: int = Field(default=512, ge=1)
    """Optimizer steps between two such moves."""

    own_fields: ClassVar[frozenset[str]] = frozenset(
        {"beta", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting", "discopop_tau"}
        | {"label_smoothing", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"}
    )

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The loss variants, one or several."""
        return self.loss_type if isinstance(self.loss_type, tuple) else (self.loss_type,)

    @model_validator(mode="after")
    def _consistent(self) -> DpoParams:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise WrongValue(
                f"`loss_weights` has {len(self.loss_weights)} values for {len(self.losses)} losses", "give one each"
            )
        if "exo_pair" in self.losses and not self.label_smoothing:
            raise WrongValue("`loss_type: exo_pair` needs `label_smoothing` above 0", "its authors advise 0.001")
        if self.reference_free and (self.reference or self.sync_ref_model):
            raise WrongValue("`reference_free` uses no reference", "leave `reference` and `sync_ref_model` out")
        if self.label_smoothing and OF_BATCHES & set(self.losses) and not OWN_SMOOTHING & set(self.losses):
            raise WrongValue("`loss_type: sft` can't weigh single pairs", "leave `label_smoothing` out")
        if self.sync_ref_model and (self.lora or self.precompute_ref_log_probs):
            raise WrongValue(
                "`sync_ref_model` needs a reference beside the model", "leave `lora` and `precompute_ref_log_probs` out"
            )
        return self


class Dpo(TrainingOperator[DpoParams]):
    """Train a model on preferences without a reward model (rows with `prompt`, `chosen`, `rejected` and maybe `p_chosen`)."""

    name = "dpo"
    params_type = DpoParams
    watched = (health.falling_loss, health.preferences)

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the two replies; `p_chosen` is taken as 1 where it is missing."""
        return {step: ["chosen", "rejected"] for step in self.params.row_steps()}

    def check(self) -> Iterator[Finding]:
        """Yield beside the rest a reference that a divided model can't have."""
        yield from super().check()
        odd = [name for name in ("precompute_ref_log_probs", "reference_free", "sync_ref_model") if getattr(self.params, name)]
        if (way := self.params.division) and odd:
            yield Finding((way,), f"`{way}` divides no model with `{odd[0]}`", "leave one of them out")

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield beside the rest a loss that can't weigh pairs by the labels that rows have."""
        yield from super().check_columns(inputs)
        odd = sorted(OF_BATCHES & set(self.params.losses))
        soft = [step for step, given in inputs.items() if "p_chosen" in given.types and given.gaps.get("p_chosen") != "all"]
        if odd and soft and self.params.labels == "soft":
            told = f"`{odd[0]}` can't weigh single pairs, and `{soft[0]}` has a `p_chosen` for each"
            yield Finding(("loss_type",), told, _HARD)

    def at_once(self) -> Load:
        """Return both replies of each pair."""
        return super().at_once()._replace(sequences=2 * self.params.per_device_train_batch_size)

    def read_beside(self) -> Iterator[Beside]:
        """Yield the reference, where the model itself doesn't serve."""
        if self._held_reference:
            yield Beside(self._held_reference, "alike")

    def learn(self, job: Job) -> None:
        """Train on the input's preferences and save the model, its tokenizer and the loss curve."""
        from trl import DPOConfig

        from caiflow.engine.llm.render import Renderer
        from caiflow.engine.training.loop import configure, fit
        from caiflow.engine.training.models import load_model, load_tokenizer, lora_config
        from caiflow.engine.training.saving import Trained, save
        from caiflow.operators.training.preference import SoftCollator, SoftDPO

        params = self.params
        source = job.models[params.model]
        tokenizer = load_tokenizer(source)
        renderer = Renderer(tokenizer)
        train, held_out = self.read_rows(job, lambda rows, sampled: self._tokens(rows, renderer, sampled))
        soft = any(p < 1.0 for data in (train, held_out) if data is not None for p in data["p_chosen"])
        self._check_soft(soft)
        before = params.precompute_ref_log_probs or params.reference_free
        more: dict[str, Any] = {"loss_type": list(params.losses), "max_length": params.max_length}
        more |= {"loss_weights": list(params.loss_weights) if params.loss_weights else None, "precompute_ref_log_probs": before}
        more["remove_unused_columns"] = False  # the collator takes what it needs
        model = load_model(source, params)
        trainer = SoftDPO(
            model=model,
            ref_model=self._reference(job),
            args=configure(DPOConfig, params, job, rows=len(train), **more),
            data_collator=SoftCollator(pad_token_id=tokenizer.pad_token_id),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=lora_config(params.lora, model) if params.lora else None,
            soft=soft,
            reference_free=params.reference_free,
        )
        fit(trainer, params, job)
        if trainer.is_world_process_zero():
            measure = self._measure(train, trainer.state.global_step, tokenizer.pad_token_id)
            save(Trained(trainer.model, tokenizer, source, measure), params, job)

    def _measure(self, data: Dataset, steps: int, pad_id: int) -> Measure:
        """Return the loss on the chosen replies of some pairs."""
        from caiflow.engine.training.saving import LossOn, reply_rows, some_rows

        pairs = some_rows(data, self.params, steps)
        return LossOn(reply_rows(pairs, "chosen_ids"), pad_id, self.params.per_device_eval_batch_size)

    @property
    def _held_reference(self) -> str:
        """The model that is the reference; empty where the model itself serves: without its adapters, or before training."""
        params = self.params
        itself = params.lora is not None or params.precompute_ref_log_probs
        return "" if params.reference_free or (params.reference is None and itself) else params.reference or params.model

    def _reference(self, job: Job) -> Any:
        from caiflow.engine.training.models import load_alike

        return load_alike(job.models[self._held_reference], self.params) if self._held_reference else None

    def _tokens(self, rows: Rows, renderer: Renderer, sampled: Sampled) -> Tokens:
        from caiflow.engine.training.tokens import preferences
        from caiflow.operators.training.preference import softened

        params = self.params
        tokens = preferences(rows, renderer, max_length=params.max_length, sampled=sampled)
        smoothing = 0.0 if OWN_SMOOTHING & set(params.losses) else params.label_smoothing
        if not smoothing and params.labels == "soft":
            return tokens
        data = tokens.data
        p = [softened(1.0 if params.labels == "hard" else value, smoothing) for value in data["p_chosen"]]
        return replace(tokens, data=data.remove_columns("p_chosen").add_column("p_chosen", p))

    def _check_soft(self, soft: bool) -> None:
        odd = sorted(OF_BATCHES & set(self.params.losses))
        if soft and odd:
            raise StepError(f"loss_type: {', '.join(odd)} can't weigh single pairs, but the rows have soft labels", _HARD)
