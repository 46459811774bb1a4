"""What every algorithm of reinforcement learning here shares: prompts, their order, and the reward of a reply.

Prompts go through the renderer that serving uses. Owns no algorithm.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import RepeatSampler

from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Message, Request, Sampling
from caiflow.engine.training.loop import Quiet
from caiflow.engine.training.models import learnt_weights
from caiflow.engine.training.private import RolloutHooks
from caiflow.operators.training.asked import AskedReward, Drawn, Listener, Reader
from caiflow.operators.training.scoring import RewardModel

if TYPE_CHECKING:
    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.llm.vllm.replies import Replies

RewardFunction = Callable[..., list[float]]


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """The library's order of prompts, with two differences.

    An epoch's order follows from its number, so that a resumed run goes on as it would have; and the last batch is filled up
    from the epoch's beginning, so that no prompt is passed over.
    """

    num_samples: int
    batch_size: int
    mini_repeat_count: int
    repeat_count: int

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as in this epoch from now on."""
        if self.shuffle:
            self.generator.manual_seed((self.seed + epoch) % 2**63)

    def __iter__(self) -> Iterator[int]:
        count = self.num_samples
        order = torch.randperm(count, generator=self.generator).tolist() if self.shuffle else list(range(count))
        whole = [order[place % count] for place in range(self._chunks() * self.batch_size)]
        for start in range(0, len(whole), self.batch_size):
            chunk = [index for index in whole[start : start + self.batch_size] for _ in range(self.mini_repeat_count)]
            for _ in range(self.repeat_count):
                yield from chunk

    def __len__(self) -> int:
        return self._chunks() * self.batch_size * self.mini_repeat_count * self.repeat_count

    def _chunks(self) -> int:
        return -(-self.num_samples // self.batch_size)


def _seeds(seed: int, step: int, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the seeds of replies drawn with the weights of a step: by prompt, and by which of its replies each is."""
    drawn, seeds = Counter[tuple[int, ...]](), []
    for ids in map(tuple, prompts):
        seeds.append(int(digest([seed, step, ids, drawn[ids]])[:16], 16))
        drawn[ids] += 1
    return seeds


def _unheard(_ended: Mapping[int, Sequence[int]]) -> None:
    """Tell nobody of replies that have ended."""


class Rollouts(Quiet, RolloutHooks):
    """Mixed into the library's trainers that generate: prompts as serving renders them, in an order that can be resumed."""

    renderer: Renderer
    args: Any
    reward_funcs: Sequence[Any]
    eos_token_ids: Sequence[int]
    async_loop: asyncio.AbstractEventLoop
    num_generations: int
    num_iterations: int
    shuffle_dataset: bool
    train_dataset: Any
    state: Any
    max_completion_length: int
    vllm: Replies | None = None
    """What draws replies where the model doesn't itself."""
    _taken_at = -1

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Return a prompt's token ids as serving has them."""
        return self.renderer.ids(Request(tuple(prompt)))

    def coming(self, inputs: list[dict[str, Any]]) -> None:
        """Remember the rows of the batch."""
        self._drawn = Drawn([row["prompt"] for row in inputs], [row.get("more") or {} for row in inputs], {})

    def drawn(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[float]]] | None:
        """Return the replies of vLLM, which is given the weights of now before the first ones to each step."""
        if self.vllm is None:
            return None
        step = self.state.global_step
        if step != self._taken_at:
            self.vllm.take(learnt_weights(self.accelerator.unwrap_model(self.model_wrapped)))
            self._taken_at = step
        args, seeds = self.args, _seeds(self.args.seed, step, prompts)
        sampling = Sampling(args.temperature, args.top_p, args.top_k, 0.0, self.max_completion_length, args.repetition_penalty)
        asked = self._asked()
        replies = self.vllm.draw(prompts, sampling, seeds, partial(self._ended, asked, self._drawn) if asked else _unheard)
        return [reply.ids for reply in replies], [reply.logps for reply in replies]

    def listener(self) -> Listener | None:
        """Return what puts questions about replies as soon as they have ended; None where no model is asked."""
        asked = self._asked()
        return Listener(self.eos_token_ids, partial(self._ended, asked, self._drawn)) if asked else None

    def _asked(self) -> list[AskedReward]:
        return [function for function in self.reward_funcs if isinstance(function, AskedReward)]

    def _ended(self, asked: Sequence[AskedReward], drawn: Drawn, ended: Mapping[int, Sequence[int]]) -> None:
        """Put the questions that these replies complete, in the event loop that the rewards are called in."""
        told = {place: asked[0].read(drawn.prompts[place], ids) for place, ids in ended.items()}

        async def begin() -> None:
            for place, reply in told.items():
                drawn.replies[place] = reply
                for reward in asked:
                    reward.begin(reward.questions(drawn, place))

        asyncio.run_coroutine_threadsafe(begin(), self.async_loop)

    def order(self, dataset: Any = None) -> EpochSampler:
        """Return the order of an epoch's prompts, each as often as it has replies."""
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )


@dataclass(frozen=True, slots=True)
class LengthControl:
    """What is taken off a reply's reward for its length in tokens."""

    free_tokens: int
    per_token: float
    unended: float

    def reward(self, ids: Sequence[int], ends: Sequence[int]) -> float:
        """Return the (negative) reward of a reply of these token ids, `ends` being the tokens that end a turn."""
        over = max(0, len(ids) - self.free_tokens)
        cut = not ids or ids[-1] not in ends
        return -(self.per_token * over + self.unended * cut)


def reader(renderer: Renderer, ends: Sequence[int]) -> Reader:
    """Return what reads replies as serving does, `ends` being the tokens that end a turn."""

    def read(prompt: Sequence[Message], ids: Sequence[int]) -> str:
        request = Request(tuple(prompt))
        return renderer.answer(request, ids[:-1] if ids and ids[-1] in ends else ids, renderer.ids(request))[0]

    return read


def scored(name: str, model: RewardModel, read: Reader) -> RewardFunction:
    """Return a reward model's score of replies given as token ids, in the form the library calls."""
    plain = score_function(name, model)

    def score(prompts: Any, completion_ids: Any, **_: Any) -> list[float]:
        return plain(prompts=prompts, completions=list(map(read, prompts, completion_ids)))

    score.__name__ = name
    return score


def score_function(name: str, model: RewardModel) -> RewardFunction:
    """Return a reward model's score in the form the library calls; prompts and replies may be plain texts."""

    def score(prompts: Any, completions: Any, **_: Any) -> list[float]:
        turns: list[Sequence[Message]] = [
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts
        ]
        return model.score(turns, [reply if isinstance(reply, str) else reply[0]["content"] for reply in completions])

    score.__name__ = name
    return score


def length_control(
    length: LengthControl, ends: Sequence[int], watched: Mapping[str, Callable[[str], bool]], read: Reader
) -> RewardFunction:
    """Return the part of a reply's reward that is for its length, `ends` being the tokens that end a turn.

    `watched` are tests of a reply's words whose rates go into the metrics beside the reward, without counting towards it.
    """

    def control(prompts: Any, completion_ids: Any, log_metric: Any, **_: Any) -> list[float]:
        texts = list(map(read, prompts, completion_ids))
        for name, test in watched.items():
            log_metric(f"{name}_rate", sum(map(test, texts)) / len(texts))
        return [length.reward(ids, ends) for ids in completion_ids]

    control.__name__ = "length"
    return control
