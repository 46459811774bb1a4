"""Saving what a training came to, in the Hugging Face layout, and holding what was saved to what was trained.

Owns which weights adapters are folded into, in what dtype, and how far the saved model's loss may be from the trained one's.
Adapters are kept by themselves too, so that another form can be made of them. Never trains.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import Task, base_and_adapter, folded, load_weights
from caiflow.engine.operator import Job
from caiflow.engine.store.artifacts import ADAPTER
from caiflow.engine.store.checkpoints import leave_learnt
from caiflow.engine.store.disk import finite
from caiflow.engine.training.loop import in_bf16
from caiflow.engine.training.params import TrainingParams
from caiflow.engine.training.quantization import dequantised, is_quantised
from caiflow.engine.training.tokens import IGNORED

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BESIDE, RECORD = "beside", "learnt.json"
"""With kept adapters: the other files that the training wrote, and its figures with what its loss is measured on."""

EXACT, ROUNDED = 0.002, 0.03
"""How far the saved model's loss may be from the trained one's, as a share of it: in float32, and in fewer digits."""

LabelledRow = tuple[Sequence[int], Sequence[int]]
"""Token ids and their labels; -100 labels what carries no loss."""


class Measure(Protocol):
    """From a loaded model to its loss on some of the rows that it was trained on; a dataclass of plain values."""

    def __call__(self, model: Any) -> float:
        """Return the loss in nats."""


@dataclass(frozen=True, slots=True)
class LossOn:
    """A language model's mean loss in nats over the labelled tokens of `rows`."""

    rows: Sequence[LabelledRow]
    pad_id: int
    batch_size: int

    def __call__(self, model: Any) -> float:
        """Return the loss."""
        return _mean_loss(model, self.rows, self.pad_id, self.batch_size)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model at the end of its training, and all that saving it needs to know."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource | None
    """What it was before; None for a model from nothing."""
    measure: Any
    """A `Measure`."""
    task: Task = "causal"
    entries: Mapping[str, Any] = field(default_factory=dict)
    """What is added to its config.json."""


def save(trained: Trained, params: TrainingParams, job: Job) -> None:
    """Save a trained model and its tokenizer into the step's output: adapters folded in unless `merge` is off.

    Figures tell the loss of the trained model on some of its rows, and that of the saved one, loaded as its users load it.

    Raises:
        StepError: the two losses differ, though the saved model is to be the trained one.
    """
    job.metrics["trained_loss"] = trained.measure(trained.model)
    job.out_dir.mkdir(parents=True, exist_ok=True)
    adapters = hasattr(trained.model, "merge_and_unload")
    _write(trained, params, job, _keep(trained, job) if adapters else Path())


def save_again(trained: Trained, params: TrainingParams, job: Job, learnt: Path) -> None:
    """Save adapters that an earlier training left in `learnt` as `params` want it now; figures as `save` gives them.

    `trained.model` is what they were trained over, in the form in which it was.

    Raises:
        StepError: as `save`.
    """
    import torch
    from peft import PeftModel

    shutil.copytree(learnt / BESIDE, job.out_dir, dirs_exist_ok=True)
    job.metrics |= recorded(learnt)["metrics"]
    model = PeftModel.from_pretrained(trained.model, str(learnt))
    if torch.cuda.is_available() and not is_quantised(params):
        model = model.to("cuda")  # folded in where it would be right after training, to the same numbers
    _write(replace(trained, model=model), params, job, learnt)


def recorded(learnt: Path) -> dict[str, Any]:
    """Return a training's `metrics`, what its loss was `measured` on, and the `entries` of its config.json."""
    found: dict[str, Any] = json.loads((learnt / RECORD).read_bytes())
    return found


def _keep(trained: Trained, job: Job) -> Path:
    """Leave the adapters, and all that another form needs, in the work folder, whole or not at all; return where."""
    made = job.work_dir / "learnt.new"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(job.out_dir, made / BESIDE)
    _settle(trained.model, trained.source)
    trained.model.save_pretrained(made)
    entries = {**trained.entries, "use_cache": trained.model.config.use_cache}
    record = {"metrics": finite(job.metrics), "measured": asdict(trained.measure), "entries": entries}
    (made / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return leave_learnt(made, job.work_dir)


def _write(trained: Trained, params: TrainingParams, job: Job, learnt: Path) -> None:
    """Write the model in the form that is asked for, and hold it to the trained one; adapters are in `learnt`."""
    device = trained.model.device
    if hasattr(trained.model, "merge_and_unload") and not params.merge:
        _lay_apart(trained, learnt, job.out_dir)
    else:
        _whole(trained, params, learnt).save_pretrained(job.out_dir)
    trained.tokenizer.save_pretrained(job.out_dir)
    (job.out_dir / "README.md").unlink(missing_ok=True)
    trained.model.to("cpu")  # so that a device never holds both
    before, saved = job.metrics["trained_loss"], trained.measure(_loaded(trained, job.out_dir).to(device))
    job.metrics["saved_loss"] = saved
    if not is_quantised(params) or params.merge is True:
        _hold_together(before, saved, _tolerance(trained, params), params)


def _lay_apart(trained: Trained, learnt: Path, out_dir: Path) -> None:
    """Copy adapters, which name the model where it is now."""
    for file in learnt.glob("adapter_*"):
        shutil.copy(file, out_dir)
    if trained.source is not None:
        config = json.loads((out_dir / ADAPTER).read_bytes())
        config["base_model_name_or_path"] = trained.source.path
        (out_dir / ADAPTER).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


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


def _whole(trained: Trained, params: TrainingParams, learnt: Path) -> Any:
    model = _over_rounded(trained, params, learnt) if is_quantised(params) else trained.model
    if hasattr(model, "merge_and_unload"):
        model = folded(model)
    model.config.update(dict(trained.entries))
    return model if trained.source is None else model.to(_stored_dtype(trained.source))


def _over_rounded(trained: Trained, params: TrainingParams, learnt: Path) -> Any:
    """Return the adapters over weights that aren't quantised: the rounded ones they were trained over, or the original ones."""
    from peft import PeftModel

    assert trained.source is not None
    original = params.merge == "original"
    base = load_weights(trained.source, trained.task, dtype="auto") if original else dequantised(trained.model.unload())
    return PeftModel.from_pretrained(base, str(learnt))


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
