"""Saving what a training came to, in the Hugging Face layout, and holding what was saved to what was trained.

Owns which weights adapters are folded into, in what dtype, and how far the saved model's loss may be from the trained one's.
Never trains.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import Task, base_and_adapter, folded, load_weights
from caiflow.engine.operator import Job
from caiflow.engine.training.loop import in_bf16
from caiflow.engine.training.params import TrainingParams
from caiflow.engine.training.quantization import dequantised, is_quantised
from caiflow.engine.training.tokens import IGNORED

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ADAPTER = "adapter"
"""The folder beside the checkpoints where adapters lie while they are folded in."""

EXACT, ROUNDED = 0.002, 0.03
"""How far the saved model's loss may be from the trained one's, as a share of it: in float32, and in fewer digits."""

Measure = Callable[[Any], float]
"""From a loaded model to its loss on some of the rows that it was trained on."""

LabelledRow = tuple[Sequence[int], Sequence[int]]
"""Token ids and their labels; -100 labels what carries no loss."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model at the end of its training, and all that saving it needs to know."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource | None
    """What it was before; None for a model from nothing."""
    measure: Measure
    task: Task = "causal"
    entries: Mapping[str, Any] = field(default_factory=dict)
    """What is added to its config.json."""


def save(trained: Trained, params: TrainingParams, job: Job) -> None:
    """Save a trained model and its tokenizer into the step's output: adapters folded in unless `merge` is off.

    Figures tell the loss of the trained model on some of its rows, and that of the saved one, loaded as its users load it.

    Raises:
        StepError: the two losses differ, though the saved model is to be the trained one.
    """
    before = trained.measure(trained.model)
    device = trained.model.device
    job.out_dir.mkdir(parents=True, exist_ok=True)
    if hasattr(trained.model, "merge_and_unload") and not params.merge:
        _settle(trained.model, trained.source)
        trained.model.save_pretrained(job.out_dir)
    else:
        _whole(trained, params, job).save_pretrained(job.out_dir)
    trained.tokenizer.save_pretrained(job.out_dir)
    (job.out_dir / "README.md").unlink(missing_ok=True)
    trained.model.to("cpu")  # so that a device never holds both
    saved = trained.measure(_loaded(trained, job.out_dir).to(device))
    job.metrics |= {"trained_loss": before, "saved_loss": saved}
    if not is_quantised(params) or params.merge is True:
        _hold_together(before, saved, _tolerance(trained, params), params)


def _hold_together(before: float, saved: float, tolerance: float, params: TrainingParams) -> None:
    if not abs(saved - before) <= tolerance * max(1.0, abs(before)):  # nor where either is NaN
        hint = (
            "see the adapters' `targets`, or keep them apart (`merge: false`)" if params.lora else "see the model's own dtype"
        )
        losses = f"loss {before:.4f} on some rows at the end of training, {saved:.4f} as loaded"
        raise StepError(f"the saved model isn't the trained one: {losses}", hint)


def _tolerance(trained: Trained, params: TrainingParams) -> float:
    """Return how far apart the two losses may be, as a share of the loss: more where either is computed in few digits."""
    import torch

    plain = trained.source is None or (_stored_dtype(trained.source) == torch.float32 and not is_quantised(params))
    return EXACT if plain and not in_bf16(params) else ROUNDED


def _settle(model: Any, source: ModelSource | None) -> None:
    """Have an adapter's settings name its model with its revision, and put their sets in order.

    Written as they come, equal adapters have other digests each time.
    """
    for config in model.peft_config.values():
        config.revision = source.revision if source else None
        for name, value in list(vars(config).items()):
            if isinstance(value, set):
                setattr(config, name, sorted(value))


def _whole(trained: Trained, params: TrainingParams, job: Job) -> Any:
    model = _over_rounded(trained, params, job) if is_quantised(params) else trained.model
    if hasattr(model, "merge_and_unload"):
        model = folded(model)
    model.config.update(dict(trained.entries))
    return model if trained.source is None else model.to(_stored_dtype(trained.source))


def _over_rounded(trained: Trained, params: TrainingParams, job: Job) -> Any:
    """Return the adapters over weights that aren't quantised: the rounded ones they were trained over, or the original ones."""
    from peft import PeftModel

    assert trained.source is not None
    folder = job.work_dir / ADAPTER
    trained.model.save_pretrained(folder)
    original = params.merge == "original"
    base = load_weights(trained.source, trained.task, dtype="auto") if original else dequantised(trained.model.unload())
    model = PeftModel.from_pretrained(base, str(folder))
    shutil.rmtree(folder)
    return model


def _stored_dtype(source: ModelSource) -> torch.dtype:
    """Return the dtype that the model's weights are stored in."""
    import torch
    from transformers import AutoConfig

    path, revision, _ = base_and_adapter(source)
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=source.trust_remote_code)
    return config.dtype or torch.float32


def _loaded(trained: Trained, folder: Path) -> Any:
    """Return the saved model as its users load it."""
    import torch

    trusted = trained.source is not None and trained.source.trust_remote_code
    source = ModelSource(path=str(folder), identity="", trust_remote_code=trusted)
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    return load_weights(source, trained.task, dtype=dtype)


def some_rows(data: Dataset, params: TrainingParams, steps: int) -> Dataset:
    """Return the rows to measure on: a batch for each 40 `steps` of the training, 8 at the most.

    Both models see the same rows, so one batch shows a difference as well as many. A step with adapters costs about two forward
    passes, measuring a batch twice as many: a fortieth of the training.
    """
    batches = max(1, min(8, steps // 40))
    return data.select(range(min(len(data), batches * params.per_device_train_batch_size)))


def reply_rows(pairs: Dataset, side: str) -> list[LabelledRow]:
    """Return one reply of each pair after its prompt; only the reply is labelled."""
    return [(row["prompt_ids"] + row[side], [IGNORED] * len(row["prompt_ids"]) + row[side]) for row in pairs]


def loss_on(rows: Sequence[LabelledRow], pad_id: int, batch_size: int) -> Measure:
    """Return the measure of a language model's mean loss in nats over the labelled tokens of `rows`."""
    return lambda model: _mean_loss(model, rows, pad_id, batch_size)


def _mean_loss(model: Any, rows: Sequence[LabelledRow], pad_id: int, batch_size: int) -> float:
    import torch

    training, total, count = model.training, 0.0, 0
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        ids, labels = (_padded([row[part] for row in batch], fill) for part, fill in ((0, pad_id), (1, IGNORED)))
        mask = _padded([[1] * len(row[0]) for row in batch], 0)
        with torch.no_grad():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
        wanted = labels[:, 1:].to(model.device)
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), wanted, reduction="sum")
        total, count = total + float(losses), count + int((wanted != IGNORED).sum())
    model.train(training)
    return total / max(1, count)


def _padded(sequences: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    import torch

    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
