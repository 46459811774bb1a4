"""Supervised fine-tuning: a model learns the replies in its rows, from a given model or from nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from caiflow.engine.errors import Finding, WrongValue
from caiflow.engine.operator import SPEED, ColumnName, Job, ModelRef
from caiflow.engine.rows.tool_use import LEAVE_OUT
from caiflow.engine.rows.turns import ANOTHER_TEMPLATE
from caiflow.engine.training import health
from caiflow.engine.training.operator import TrainingOperator
from caiflow.engine.training.params import TrainingParams
from caiflow.engine.training.scratch import Scratch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from caiflow.engine.llm.tokenizer_files import ModelFiles
    from caiflow.engine.rows.columns import Columns
    from caiflow.engine.training.saving import Measure


class SftParams(TrainingParams):
    """Fields of `op: sft`."""

    model: ModelRef | None = None
    """The model to train on; leave it out where `scratch` is given."""
    scratch: Scratch | None = None
    """Train a small model from nothing, of this shape, with a tokenizer made from the rows."""
    column: ColumnName | None = None
    """Column of the reply to `prompt` or of the whole conversation; by default `revision`, `messages`, `response` or `text`."""
    loss_on: Literal["assistant", "completion", "all"] = "assistant"
    """Tokens that carry loss: every turn of the assistant, its last turn only, or all tokens."""
    packing: bool = False
    """Put several rows into one sequence of `max_length` tokens: less padding. In `wrapped` packing they see each other."""
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] = "bfd"
    """How rows are packed: best fit and cut (`bfd`), best fit and carry over (`bfd_split`), or end to end and cut anywhere.

    In that last one, `wrapped`, rows of one sequence see each other, and the loss is another one; with the others they don't.
    """
    loss_type: Literal["nll", "dft"] = "nll"
    """Negative log-likelihood, or dynamic fine-tuning, which weighs each token by its probability."""
    neftune_noise_alpha: float | None = Field(default=None, gt=0)
    """Strength of the noise added to embeddings while training; none by default."""
    activation_offloading: bool = Field(default=False, json_schema_extra=SPEED)
    """Keep activations in main memory between the passes: less GPU memory, slower."""

    own_fields: ClassVar[frozenset[str]] = frozenset(
        {"packing", "packing_strategy", "loss_type", "neftune_noise_alpha", "activation_offloading"}
    )

    @model_validator(mode="after")
    def _one_start(self) -> SftParams:
        if (self.model is None) == (self.scratch is None):
            raise ValueError("give either `model` (to train on) or `scratch` (to train from nothing)")
        if self.scratch and self.lora:
            raise WrongValue("`lora` trains beside given weights", "with `scratch` there are none, so leave it out")
        return self


class Sft(TrainingOperator[SftParams]):
    """Train a model on the replies in the rows (conversations through the chat template that serving uses)."""

    name = "sft"
    params_type = SftParams
    watched = (health.falling_loss,)
    takes_tools = True

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the column with what is to be learnt."""
        wanted = self.params.column or "revision|messages|response|text"
        return {step: [wanted] for step in self.params.row_steps()}

    def conversations(self, columns: Columns) -> str:
        """Return the column whose turns are learnt from, or come before the reply; empty for plain texts."""
        wanted = [self.params.column] if self.params.column else ["revision", "messages", "response", "text"]
        found = next((name for name in wanted if name in columns.types), "prompt" if columns.open else "")
        if columns.types.get(found) == "messages":
            return found
        return "prompt" if "prompt" in columns else ""

    def check_models(self, models: Mapping[str, ModelFiles], inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield beside the rest a template under which earlier turns can't be learnt, where rows may have some."""
        yield from super().check_models(models, inputs)
        name = self.params.model or ""
        if name in models and not models[name].tokenizer.takes_tools:
            yield from self._without_tools(inputs, f"the chat template of `{name}`")
        if self.params.loss_on == "completion" or name not in models:
            return
        talks = [columns.turns.get(column) for columns in inputs.values() if (column := self.conversations(columns))]
        going_on = [turns for turns in talks if turns is None or turns.earlier != 0]
        under_system = any(turns is not None and turns.system for turns in going_on)
        tokenizer = models[name].tokenizer
        if going_on and any(tokenizer.rewrites_turns(system=system) for system in {False, under_system}):
            told = f"the chat template of `{name}` rewrites what the assistant said before the last turn, so it can't be learnt"
            yield Finding(("loss_on",), told, "write `loss_on: completion` to learn the last reply alone")

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield beside the rest revisions that aren't the named answers, and tool turns under a template that hasn't any."""
        yield from super().check_columns(inputs)
        for step in self.params.row_steps():
            if self.params.column is None and "revision" in inputs[step].outdone & inputs[step].types.keys():
                told = f"`revision` would be learnt, and the answers that were named for `{step}` are in its `messages`"
                yield Finding(("column",), told, "write `column: messages` to learn those, `column: revision` if that is meant")
            if self.params.column is None and _uncorrected(inputs[step]):
                told = f"the answers of `{step}` would be learnt as they were before their critiques"
                hint = "have `op: revise` rewrite them first, or write `column: response` if that is meant"
                yield Finding(("input",) if step == self.params.input else ("eval_input",), told, hint)
        if self.params.scratch and not (self.params.scratch.chat_template or ""):
            yield from self._without_tools(inputs, "the chat template of a model from nothing")

    def _without_tools(self, inputs: Mapping[str, Columns], whose: str) -> Iterator[Finding]:
        for field, step in zip(("input", "eval_input"), self.params.row_steps(), strict=False):
            turns = inputs[step].turns.get(self.conversations(inputs[step]))
            if turns and turns.tools:
                have = f"{turns.tools} of {turns.rows} rows of `{step}` have"
                told = f"{whose} has no tool calls and tool turns, which {have}"
                yield Finding((field,), told, f"{ANOTHER_TEMPLATE}, or {LEAVE_OUT}")

    def learn(self, job: Job) -> None:
        """Train on the input's rows and save the model, its tokenizer and the loss curve."""
        from trl import SFTConfig, SFTTrainer

        from caiflow.engine.llm.render import Renderer
        from caiflow.engine.training.loop import Quiet, configure, fit
        from caiflow.engine.training.models import lora_config
        from caiflow.engine.training.saving import Trained, save
        from caiflow.engine.training.tokens import conversations

        class QuietSFT(Quiet, SFTTrainer):  # type: ignore[misc]
            pass

        params = self.params
        model, tokenizer = self._start(job)
        renderer = Renderer(tokenizer)
        limits: dict[str, Any] = {"max_length": params.max_length, "loss_on": params.loss_on, "column": params.column}
        train, held_out = self.read_rows(job, lambda rows, sampled: conversations(rows, renderer, sampled=sampled, **limits))
        length = params.max_length if params.packing else None  # without packing, the rows are cut already
        trainer = QuietSFT(
            model=model,
            args=configure(SFTConfig, params, job, rows=len(train), max_length=length),
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=lora_config(params.lora, model) if params.lora else None,
        )
        fit(trainer, params, job)
        if trainer.is_world_process_zero():
            source = job.models[params.model] if params.model else None
            measure = self._measure(train, trainer.state.global_step, tokenizer.pad_token_id)
            save(Trained(trainer.model, tokenizer, source, measure), params, job)

    def _measure(self, data: Dataset, steps: int, pad_id: int) -> Measure:
        """Return the loss on some rows as it is trained, without packing."""
        from caiflow.engine.training.saving import LossOn, some_rows

        rows = [(row["input_ids"], row["labels"]) for row in some_rows(data, self.params, steps)]
        return LossOn(rows, pad_id, self.params.per_device_eval_batch_size)

    def _start(self, job: Job) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from caiflow.engine.training.models import load_model, load_tokenizer

        if self.params.scratch:
            return self._from_nothing(job)
        assert self.params.model is not None
        source = job.models[self.params.model]
        return load_model(source, self.params), load_tokenizer(source)

    def _from_nothing(self, job: Job) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from transformers import AutoTokenizer

        from caiflow.engine.training.loop import seed_of
        from caiflow.engine.training.parallel.workers import first_before_others
        from caiflow.engine.training.scratch import random_model, train_tokenizer
        from caiflow.engine.training.tokens import contents

        assert self.params.scratch is not None
        kept = job.work_dir / "tokenizer"
        with first_before_others():
            if not kept.exists():
                taught = contents(job.inputs[self.params.input], self.params.column)
                texts = (text for content in taught for text in _texts(content))
                made = kept.with_name(f"tokenizer.{os.getpid()}")
                train_tokenizer(texts, self.params.scratch).save_pretrained(made)
                with contextlib.suppress(OSError):  # another worker's is there already, and is the same
                    made.rename(kept)
        tokenizer = AutoTokenizer.from_pretrained(Path(kept))
        return random_model(self.params.scratch, tokenizer, seed_of(job)), tokenizer


def _uncorrected(columns: Columns) -> bool:
    """Return whether a reply would be learnt that `critique` criticised and `revise` didn't rewrite."""
    found = columns.types.keys() & {"revision", "messages", "response", "critique_truncated"}
    return not columns.open and found == {"response", "critique_truncated"}


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [turn["content"] for turn in content]
