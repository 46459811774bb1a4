"""What the operators that train have in common: one process, or several that share their gradients."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from caiflow.engine.errors import Finding
from caiflow.engine.health import Measure
from caiflow.engine.operator import Job, ModelOperator
from caiflow.engine.rows.columns import NO_ANSWERS, Columns
from caiflow.engine.rows.tool_use import refused_tools
from caiflow.engine.rows.turns import refused_systems
from caiflow.engine.training import health
from caiflow.engine.training.checks import wrong_for_model, wrong_settings
from caiflow.engine.training.grouping import GROUPING
from caiflow.engine.training.memory import Beside, Load
from caiflow.engine.training.parallel.workers import refuse_alone
from caiflow.engine.training.params import TrainingParams
from caiflow.engine.training.sampled import sampled_by

if TYPE_CHECKING:
    from datasets import Dataset

    from caiflow.engine.llm.files import Task
    from caiflow.engine.llm.tokenizer_files import ModelFiles
    from caiflow.engine.rows.folder import Rows
    from caiflow.engine.training.sampled import Sampled
    from caiflow.engine.training.saving import Measure as MeasureOfLoss
    from caiflow.engine.training.tokens import Tokens

QUANTIZATION = 2
"""Raised when training over quantised weights comes to other models."""

P = TypeVar("P", bound=TrainingParams)


class TrainingOperator(ModelOperator[P]):
    """Base of the operators that train: `learn` runs in one process, or in each of `resources.workers` at the same time."""

    watched: ClassVar[tuple[Callable[[], list[Measure]], ...]] = ()
    """Groups of health measures beside those of every training."""
    task: ClassVar[Task] = "causal"
    takes_tools: ClassVar[bool] = False
    """Whether it learns conversations in which tools are called, where the model's chat template has them."""

    def check(self) -> Iterator[Finding]:
        """Yield what the trainer's libraries would refuse once everything before it is paid for."""
        yield from wrong_settings(self.params)

    def check_models(self, models: Mapping[str, ModelFiles], inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield what the model to train doesn't have (layers for adapters, positions, tokens) or take (system turns)."""
        name = getattr(self.params, "model", None) or ""
        if name not in models:
            return
        yield from wrong_for_model(self.params, models[name], head=self.at_once().head)
        for field, step in zip(("input", "eval_input"), self.params.row_steps(), strict=False):
            yield from refused_systems({step: inputs[step]}, self.conversations(inputs[step]), name, models, field)

    def conversations(self, _columns: Columns) -> str:
        """Return the column whose turns come before what is learnt; empty for plain texts."""
        return "prompt"

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield inputs of which some rows are known to have nothing to learn, or tool turns where those aren't learnt."""
        for field, step in zip(("input", "eval_input"), self.params.row_steps(), strict=False):
            yield from () if self.takes_tools else refused_tools(inputs, [step], "prompt", field)
        for field, step in zip(("input", "eval_input"), self.params.row_steps(), strict=False):
            for wanted in self.needs().get(step, ()):
                empty = inputs[step].nothing_in(wanted.split("|"))
                if empty is None or _may_be_marked(inputs[step], empty):
                    continue
                rows = "no row" if inputs[step].gaps[empty] == "all" else "not every row"
                told = "ends with a reply" if empty == "messages" else f"has anything in `{empty}`"
                yield Finding((field,), f"{rows} of `{step}` {told}, so that there is nothing to learn", NO_ANSWERS)

    def identity(self) -> Mapping[str, Any]:
        """Return the number of workers where there are several: it multiplies the batch; and what rounds otherwise."""
        workers, lora = self.params.resources.workers, self.params.lora
        parts: dict[str, Any] = {"workers": workers} if workers > 1 else {}
        parts |= {"fsdp": True} if self.params.fsdp else {}
        parts |= {"deepspeed": self.params.deepspeed.rounding()} if self.params.deepspeed else {}
        parts |= {"grouping": GROUPING} if self.params.train_sampling_strategy == "group_by_length" else {}
        return {**parts, "quantization": QUANTIZATION} if lora and lora.quantization else parts

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with the training."""
        return [measure for group in (health.training, *self.watched) for measure in group()]

    def at_once(self) -> Load:
        """Return what goes through the model at once while it is trained."""
        return Load(self.params.per_device_train_batch_size, self.params.max_length)

    def read_beside(self) -> Iterator[Beside]:
        """Yield the models that are held beside the trained one, to read from."""
        yield from ()

    def train(self, job: Job) -> None:
        """Train and save into `job.out_dir`: alone, or as one of the processes that were asked for."""
        self._prepare()
        refuse_alone(self.params.resources.workers)
        self.learn(job)

    def _prepare(self) -> None:
        """Quieten the libraries, and hide the GPUs from them where none were asked for: Ray hides none then."""
        if self.params.resources.num_gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from caiflow.engine.training.loop import quiet_libraries

        quiet_libraries()

    def forms(self) -> Collection[str]:
        """Return the parameters that only decide in what form the trained model is saved; another value trains nothing again.

        That is `merge` where there are adapters: they are kept by themselves, and another form is made of them.
        """
        return ("merge",) if self.params.lora and getattr(self.params, "model", None) else ()

    def save_again(self, job: Job, learnt: Path) -> None:
        """Save an earlier training's adapters as `merge` wants them now."""
        from caiflow.engine.training.models import load_model, load_tokenizer
        from caiflow.engine.training.saving import Trained, recorded, save_again

        self._prepare()
        source = job.models[getattr(self.params, "model")]  # noqa: B009 - declared by each operator's own parameters
        record = recorded(learnt)
        model, measure = load_model(source, self.params, self.task), self.measuring(record["measured"])
        trained = Trained(model, load_tokenizer(source), source, measure, self.task, record["entries"])
        save_again(trained, self.params, job, learnt)

    def measuring(self, how: Mapping[str, Any]) -> MeasureOfLoss:
        """Return the measure of a loss that was recorded with what was learnt."""
        from caiflow.engine.training.saving import LossOn

        return LossOn(**how)

    @abstractmethod
    def learn(self, job: Job) -> None:
        """Train in this process, which may be one of several; the first one saves."""

    def read_rows(self, job: Job, read: Callable[[Rows, Sampled], Tokens]) -> tuple[Dataset, Dataset | None]:
        """Return the rows to learn from and those held out; what became of each goes into the metrics.

        `read` is given what the model to train is known to have sampled, too.

        Raises:
            StepError: rows of another step than the input have prompts that are learnt from.
        """
        steps = self.params.row_steps()
        if len(set(steps)) > 1:
            from caiflow.engine.rows.held_out import refuse_shared

            refuse_shared(job.inputs[steps[0]], job.inputs[steps[1]], steps)
        start = job.models.get(getattr(self.params, "model", None) or "")
        with sampled_by(start.identity if start else "", job.ledger_dir) as sampled:
            found = [read(job.inputs[step], sampled) for step in steps]
        job.metrics |= sampled.metrics()
        job.uids["parting_tokens"] = sampled.uids
        for prefix, tokens in zip(("", "eval_"), found, strict=False):
            job.metrics |= tokens.counts.metrics(prefix)
        return found[0].data, found[1].data if len(found) > 1 else None


def _may_be_marked(columns: Columns, empty: str) -> bool:
    """Return whether the rows with nothing in a column may be those whose mark keeps them from being learnt."""
    marks = [columns.types[name] for name in ("label", "kto_tag") if name in columns.types]
    return columns.gaps[empty] == "some" and any(mark in ("flag", "text", None) for mark in marks)
