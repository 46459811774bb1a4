"""Every private name of TRL and transformers that trainings use, each with its reason; a release may change any of them.

Owns the seam: the libraries' hooks call public methods here, and their private methods are called from here. Never knows an
algorithm. The tests name whatever of it an installed release lacks, and any private name that another file touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from caiflow.engine.training.grouping import Grouped, lengths

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torch.utils.data import Sampler

    from caiflow.engine.llm.base import Message


def score_learnt_alone(model: Any) -> None:
    """Have a frozen output head score on a CPU, too, only what carries loss, as TRL does on a GPU, to the same numbers.

    Elsewhere it scores padding and prompts as well, for the sake of devices that compile anew for each shape. A head that is
    trained sums its gradient over all positions, and would round otherwise.
    """
    from trl.trainer import utils

    own, head = utils._use_triton, getattr(model, "get_output_embeddings", lambda: None)()
    own = own.args[0] if isinstance(own, partial) else own  # a training before this one was in this process
    parts = (getattr(head, "weight", None), getattr(head, "bias", None))  # of one with adapters, which is no module, too
    frozen = head is not None and not any(part.requires_grad for part in parts if part is not None)
    utils._use_triton = partial(_on_cpu_or, own) if frozen else own


def _on_cpu_or(own: Callable[[Any], bool], device: Any) -> bool:
    return device.type == "cpu" or own(device)


def find_adapters_once(model: Any) -> None:
    """Have PEFT lay a model's adapters aside, as the reference is asked, by a list of them.

    It looks through the whole model five times for each batch otherwise, to find them and to tell whether some were aside.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    if not isinstance(model, PeftModel):
        return
    adapters = [part for part in model.modules() if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)]

    @contextmanager
    def aside() -> Iterator[None]:
        for one in adapters:
            one.enable_adapters(False)
        try:
            yield
        finally:
            for one in adapters:
                one.enable_adapters(True)

    model.disable_adapter = aside


class Hooks:
    """Mixed into each of the libraries' trainers."""

    args: Any
    model: Any
    train_dataset: Any
    _metrics: dict[str, Any]

    def _send_telemetry(self) -> None:
        """Send nothing: TRL reports each training to the hub when a trainer is made, and nobody asked it to."""

    def _get_grad_norm(self, *args: Any, **options: Any) -> Any:
        """Show the norm of the gradients before the step is taken; callbacks aren't given it."""
        norm = super()._get_grad_norm(*args, **options)  # type: ignore[misc]
        self.check_gradients(float(norm))
        return norm

    def check_gradients(self, norm: float) -> None:
        """Look at the norm of the gradients of a step that is about to be taken."""
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        """Order rows that are grouped by length as grouping.py does."""
        data = self.train_dataset if train_dataset is None else train_dataset
        sizes = lengths(data) if self.args.train_sampling_strategy == "group_by_length" else []
        if not sizes:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        return Grouped(sizes, self.args.train_batch_size, self.args.data_seed)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        """Measure rows as they stand, however those that train are grouped: the loss is a mean over batches."""
        from torch.utils.data import SequentialSampler

        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)  # type: ignore[misc]
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def note(self, figures: Mapping[str, float]) -> None:
        """Have figures of a batch logged; TRL averages what `_metrics` holds of a mode and logs it with the loss."""
        for name, value in figures.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)


class TokenisedPairs:
    """Mixed into TRL's DPO over rows that are tokenised already."""

    accelerator: Any
    compute_ref_log_probs: Callable[..., tuple[Tensor, Tensor]]
    data_collator: Any
    model: Any
    ref_model: Any
    reference_free: bool

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Return the rows as they are: TRL would look for texts, though their ids are there."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, _name: str, batch_size: int) -> Dataset:
        """Have each process add what the reference says of all rows; TRL's first one leaves it in a file of its own.

        A reference that finds every reply certain stands for none: TRL has no training without one.
        """
        chosen, rejected = [[0.0] * len(dataset)] * 2 if self.reference_free else self.ask_reference(dataset, batch_size)
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def ask_reference(self, dataset: Dataset, batch_size: int) -> list[list[float]]:
        """Return the reference's log-probabilities of the chosen and of the rejected replies, for all rows."""
        from torch.utils.data import DataLoader

        model, together = self.ref_model or self.model, self.accelerator.gather_for_metrics
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size, collate_fn=self.data_collator))
        found = [together(self.compute_ref_log_probs(model, batch)) for batch in loader]
        return [[value for part in side for value in part.tolist()] for side in zip(*found, strict=True)]


class RolloutHooks(Hooks):
    """Mixed into TRL's trainers that generate."""

    accelerator: Any
    model_wrapped: Any

    def _tokenize_prompts(self, prompts: Sequence[Sequence[Message]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Render prompts as serving renders them; TRL takes no function for that."""
        return [self.prompt_ids(prompt) for prompt in prompts], None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Show the rows of a batch before its replies are drawn; TRL hands no more than prompts on to what draws."""
        self.coming(inputs)
        batch: dict[str, Tensor] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        return batch

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **options: Any) -> Any:
        """Have replies drawn elsewhere where they are, or tokens told as transformers draws them.

        TRL hands no streamer on to transformers, whose `generate` takes one. It weights replies that come with the
        log-probabilities that they were drawn with (Yao et al. 2025: what draws and what learns round differently).
        """
        if (drawn := self.drawn(prompt_ids)) is not None:
            return drawn
        model = self.accelerator.unwrap_model(self.model_wrapped)
        listener = self.listener()
        if listener is not None:
            model.generate = partial(model.generate, streamer=listener)
        try:
            return super()._generate_single_turn(prompt_ids, *args, **options)  # type: ignore[misc]
        finally:
            if listener is not None:
                del model.generate

    def coming(self, inputs: list[dict[str, Any]]) -> None:
        """Look at the rows for which replies are about to be drawn."""
        raise NotImplementedError

    def drawn(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[float]]] | None:
        """Return the ids and log-probabilities of replies that are drawn elsewhere; None where the model draws them itself."""
        raise NotImplementedError

    def listener(self) -> Any:
        """Return what is told of a batch's tokens as they are drawn, a streamer of transformers; None for nothing."""
        raise NotImplementedError

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        """Take prompts in an order of our own: TRL's depends on how often a run was resumed, and passes some over."""
        return self.order(dataset)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        """Keep the replies to each held-out prompt together, whatever the order of the rows that train."""
        return super(Hooks, self)._get_eval_sampler(eval_dataset)  # type: ignore[misc]

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Return a prompt's token ids."""
        raise NotImplementedError

    def order(self, dataset: Any) -> Sampler[int]:
        """Return the order in which the prompts of `dataset`, by default of the training set, are taken."""
        raise NotImplementedError


def means_of(noted: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return the mean of each figure over what all processes noted of it; one may have nothing to say of it."""
    names = dict.fromkeys(name for one in noted for name in one)
    found = {name: [value for one in noted for value in one.get(name, ())] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


class OwnObjective(RolloutHooks):
    """Mixed into TRL's RLOO where replies are drawn and scored by TRL, and what is learned from them isn't TRL's."""

    _pending_metrics: dict[str, list[float]]
    _generate: Callable[..., Any]
    _calculate_rewards: Callable[..., Any]
    _get_per_token_logps_and_entropies: Callable[..., Any]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Leave what a batch of replies carries to the loss to the algorithm."""
        self.coming(inputs)
        return self.roll_out(inputs)

    def roll_out(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of replies to the prompts with all that its loss needs."""
        raise NotImplementedError

    def draw(self, prompts: Sequence[Any]) -> tuple[list[list[int]], list[list[int]], list[Any]]:
        """Return the ids of the prompts, and the ids and texts of their replies; TRL has no public way to draw them."""
        ids, reply_ids, replies = self._generate(prompts)
        return ids, reply_ids, replies

    def rewards(self, inputs: Any, prompts: Any, replies: Any, reply_ids: Any) -> Tensor:
        """Return all processes' rewards [B, functions]; only TRL's own method calls the reward functions and gathers them.

        What the functions noted with `log_metric`, each process by itself, waits in `_pending_metrics` until it is logged.
        """
        from accelerate.utils import gather_object

        parts: Tensor = self._calculate_rewards(inputs, prompts, replies, reply_ids)
        self.note(means_of(gather_object([dict(self._pending_metrics)])))
        self._pending_metrics.clear()
        return parts

    def token_logps(self, model: Any, ids: Tensor, seen: Tensor, length: int, *, entropies: bool) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies [B, length] of the last tokens; TRL's method cuts the logits into chunks."""
        logps, found, _ = self._get_per_token_logps_and_entropies(model, ids, seen, length, compute_entropy=entropies)
        return logps, found
