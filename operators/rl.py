"""Reinforcement learning: a model learns to write replies that reward models and graders score high, and stays near itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import Finding, StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.machine import pip_command
from caiflow.engine.operator import Calls, Expected, Job
from caiflow.engine.training import health
from caiflow.engine.training.memory import Beside, Load
from caiflow.engine.training.operator import TrainingOperator
from caiflow.operators.judging.options import OptionsJudge
from caiflow.operators.judging.params import GroupJudging
from caiflow.operators.judging.prompts import FORMAT_VERSION
from caiflow.operators.training.params import RlParams

if TYPE_CHECKING:
    from datasets import Dataset

    from caiflow.engine.health import Measure
    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.training.saving import Measure as MeasureOfLoss
    from caiflow.operators.training.watching import Watched


DRAWN = 1
"""Raised when vLLM comes to draw other replies for a training."""


class Rl(TrainingOperator[RlParams]):
    """Train a model on its own replies by the scores of reward models, graders and judges (rows with `prompt`)."""

    name = "rl"
    version = 2
    params_type = RlParams
    watched = (health.policy,)

    def check(self) -> Iterator[Finding]:
        """Yield beside the rest a division of the model, which draws replies too."""
        yield from super().check()
        if self.params.fsdp:
            told = "`rl` divides no model: replies are drawn by the whole one"
            yield Finding(("fsdp",), told, "leave `fsdp` out; `lora` takes less memory")
        if self.params.use_vllm:
            yield from self._wrong_beside_vllm()
        for name, how in self.params.judges.items():
            yield from (wrong.below("rewards", name, "judge") for wrong in self._judge(how).problems())

    def _wrong_beside_vllm(self) -> Iterator[Finding]:
        if self.params.resources.workers > 1:
            told = "`use_vllm` is for one process: vLLM would take the others for its own"
            yield Finding(("resources", "workers"), told, "leave `workers` out, or `use_vllm`")
        if self.params.lora and self.params.lora.quantization:
            told = "vLLM isn't given weights that are rounded for training"
            yield Finding(("use_vllm",), told, "leave it out, or `lora.quantization`")

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with the training, its judges and its rewards."""
        from caiflow.operators.training.watching import measures

        judged = self.params.judges.values()
        return [
            *super().measures(),
            *measures(
                gold=bool(self.params.gold),
                judge=bool(judged),
                swap=any(how.swap for how in judged),
                vllm=self.params.use_vllm,
            ),
        ]

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the prompt, and the columns that are asked with."""
        return {step: ["prompt", *self.params.asked_with] for step in self.params.row_steps()}

    def identity(self) -> Mapping[str, Any]:
        """Return beside the rest the version of the texts that a conversation becomes for a model that is asked."""
        ordering = {name: value for how in self.params.judges.values() for name, value in how.ordering.items()}
        asked = {"format": FORMAT_VERSION} if self.params.asking else {}
        return {**super().identity(), **asked, **ordering, **({"vllm": DRAWN} if self.params.use_vllm else {})}

    def asks(self) -> Collection[str]:
        """Return the models that grade or judge."""
        return list(dict.fromkeys(how.asked for how in self.params.asking.values()))

    def calls_expected(self, inputs: Mapping[str, Expected]) -> Calls | None:
        """Return the most calls: one for each reply, or those of each group; None where some replies are only for measuring."""
        params, given = self.params, inputs.get(self.params.input)
        if given is None or not params.asking or params.eval_input:
            return None
        drawn = params.per_device_train_batch_size * params.batches * params.resources.workers
        times = -(-given.rows * params.generations // drawn) * math.ceil(params.num_train_epochs)
        if params.max_steps > 0:
            times = -(-params.max_steps // params.cycle)
        judged = sum(how.sets(params.generations) * self._judge(how).calls() for how in params.judges.values())
        each = (len(params.asking) - len(params.judges)) * params.generations + judged
        return Calls(times * drawn // params.generations * each)

    def _judge(self, how: GroupJudging) -> OptionsJudge:
        return OptionsJudge(how, self.context.constitution, self.context.seed, how.instruction)

    def at_once(self) -> Load:
        """Return the replies that are learnt from at once, and those that are drawn at once."""
        return super().at_once()._replace(drawn=self.params.per_device_train_batch_size * self.params.batches)

    def read_beside(self) -> Iterator[Beside]:
        """Yield the model as it was, unless adapters can be taken off it, and the reward models."""
        if self.params.lora is None and self.params.beta:
            yield Beside(self.params.model, "float32")
        if self.params.use_vllm:
            yield Beside(self.params.model, "stored")
        yield from (Beside(name, "stored") for name in self.params.reward_models)

    def learn(self, job: Job) -> None:
        """Train on the input's prompts and save the model, its tokenizer and the curves of reward, divergence and length."""
        from caiflow.engine.llm.render import Renderer
        from caiflow.engine.training.loop import fit
        from caiflow.engine.training.models import load_model, load_tokenizer, refuse_two
        from caiflow.engine.training.saving import Trained, save
        from caiflow.engine.training.tokens import prompts
        from caiflow.operators.training import watching
        from caiflow.operators.training.ppo import remove_value_head

        params = self.params
        refuse_two(job.models[params.model], params)
        source = self._start(job)
        tokenizer = load_tokenizer(source)
        renderer = Renderer(tokenizer)
        room = params.max_length - params.max_completion_length
        data = self.read_rows(job, lambda rows, _: prompts(rows, renderer, max_length=room, more=params.asked_with))
        trainer = self._trainer(job, source, load_model(source, params), renderer, data)
        with self._vllm(source, trainer):
            fit(trainer, params, job, cycle=params.cycle)
        if trainer.is_world_process_zero():
            watching.tell(job.metrics, trainer.state.log_history, self._watched(), self.context.seed)
            remove_value_head(trainer.model)
            measure = self._measure(data[0], trainer.state.global_step, renderer)
            save(Trained(trainer.model, tokenizer, source, measure), params, job)

    @contextmanager
    def _vllm(self, source: ModelSource, trainer: Any) -> Iterator[None]:
        """Have vLLM draw a trainer's replies in this block, where it is to."""
        if not self.params.use_vllm:
            yield
            return
        if not find_spec("vllm"):
            raise StepError("`use_vllm` wants vLLM, which is not installed here", f"{pip_command('vllm')}, or leave it out")
        from caiflow.engine.llm.vllm.replies import Replies

        params = self.params
        drawer = Replies(source, params.max_length, params.vllm_gpu_memory_utilization, trainer.eos_token_ids)
        trainer.vllm, trainer.use_vllm = drawer, True
        try:
            yield
        finally:
            drawer.close()

    def _watched(self) -> Watched:
        """Return what the curve tells of."""
        from caiflow.operators.training.watching import Watched

        within = {name for name, how in self.params.judges.items() if not how.against}
        return Watched(self.params.gold, {name: weight for name, weight in self.params.weights.items() if name not in within})

    def _measure(self, data: Dataset, steps: int, renderer: Renderer) -> MeasureOfLoss:
        """Return the loss on some prompts, since there are no right replies."""
        from caiflow.engine.llm.base import Request
        from caiflow.engine.training.saving import LossOn, some_rows

        prompts = [renderer.ids(Request(tuple(row["prompt"]))) for row in some_rows(data, self.params, steps)]
        pad_id = renderer.tokenizer.pad_token_id
        return LossOn([(ids, ids) for ids in prompts], pad_id, self.params.per_device_eval_batch_size)

    def _start(self, job: Job) -> ModelSource:
        """Return the model to begin with as one whole folder: the libraries load the reference from there a second time."""
        from caiflow.engine.llm.files import base_and_adapter
        from caiflow.engine.training.models import load_plain, load_tokenizer
        from caiflow.engine.training.parallel.workers import first_before_others

        source = job.models[self.params.model]
        if base_and_adapter(source)[2] is None:
            return source
        folder = job.work_dir / "start"
        with first_before_others():
            if not (folder / "complete").exists():
                load_plain(source).save_pretrained(folder)
                load_tokenizer(source).save_pretrained(folder)
                (folder / "complete").touch()
        return source._replace(path=str(folder), adapter=None, revision=None, tokenizer=None)

    def _trainer(self, job: Job, source: ModelSource, model: Any, renderer: Renderer, data: tuple[Any, Any]) -> Any:
        from trl import GRPOTrainer, RLOOTrainer

        from caiflow.engine.training.models import lora_config
        from caiflow.operators.training.ppo import PPO, VALUE_HEAD, Settings, add_value_head
        from caiflow.operators.training.rollouts import Rollouts

        train, held_out = data
        params = self.params
        config = self.configured(job, source, len(train))
        peft = lora_config(params.lora, model) if params.lora else None
        options: dict[str, Any] = {"reward_funcs": self._rewards(job, renderer, model), "args": config, "train_dataset": train}
        options |= {"eval_dataset": held_out, "processing_class": renderer.tokenizer, "peft_config": peft}
        if params.algorithm == "ppo":
            add_value_head(model)
            if peft is not None:
                peft.modules_to_save = [VALUE_HEAD]
                peft.exclude_modules = [VALUE_HEAD]
            settings = Settings(params.gamma, params.lam, params.vf_coef, params.cliprange_value)
            trainer: Any = PPO(model=model, settings=settings, **options)
        else:
            base: type[Any] = GRPOTrainer if params.algorithm == "grpo" else RLOOTrainer
            trainer = type("RL", (Rollouts, base), {})(model=model, **options)
        trainer.renderer = renderer
        return trainer

    def configured(self, job: Job, source: ModelSource, prompts: int) -> Any:
        """Return the library's configuration of a training on so many prompts; an evaluation's batch has whole groups."""
        from trl import GRPOConfig, RLOOConfig

        from caiflow.engine.training.loop import configure

        params, generations = self.params, self.params.generations
        more: dict[str, Any] = {**params.library_fields(), "disable_dropout": True, "num_generations_eval": generations}
        more["per_device_eval_batch_size"] = max(1, params.per_device_eval_batch_size // generations) * generations
        if source.revision or source.trust_remote_code:  # how the library loads the reference
            more["model_init_kwargs"] = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
        twice = 2 if generations == 1 else 1  # the library's check wants two replies to a prompt, which ppo doesn't need
        more |= {"num_generations": twice * generations, "steps_per_generation": twice * params.batches}
        kind = GRPOConfig if params.algorithm == "grpo" else RLOOConfig
        config = configure(kind, params, job, rows=prompts * generations * params.iterations, **more)
        config.num_generations, config.steps_per_generation = generations, params.batches
        config.generation_batch_size //= twice
        return config

    def _rewards(self, job: Job, renderer: Renderer, model: Any) -> list[Any]:
        from caiflow.operators.training.contests import Contests
        from caiflow.operators.training.grades import Grades
        from caiflow.operators.training.rollouts import LengthControl, length_control, reader, scored
        from caiflow.operators.training.scoring import load_reward

        params = self.params
        length = LengthControl(params.length_free, params.length_penalty, params.unended_penalty)
        declared = model.generation_config.eos_token_id
        found = {renderer.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])}
        ends = sorted(end for end in found if end is not None)
        read = reader(renderer, ends)
        parts: list[Any] = []
        for name in params.rewards:
            if (how := params.asking.get(name)) is None:
                parts.append(scored(name, load_reward(job.models[name]), read))
                continue
            assert job.llms is not None
            if how.grader:
                parts.append(Grades(name, how.grader, job.llms, read))
            elif how.judge:
                parts.append(Contests(name, how.judge, self.context, params.generations, job.llms, read))
        return [*parts, length_control(length, ends, _tests(), read)]


def _tests() -> dict[str, Callable[[str], bool]]:
    """Return the tests whose rates tell of an over-trained model, by name."""
    from caiflow.operators.evaluation.checks import STANDARD, compiled

    names = ("boilerplate", "refusal_phrase")
    found = compiled({name: STANDARD[name] for name in names})
    return {name: lambda text, test=found[name]: test({"response": text}) for name in names}  # type: ignore[misc]
