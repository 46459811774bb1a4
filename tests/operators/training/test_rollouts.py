"""The order of prompts and the rewards beside a model's score."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from caiflow.engine.llm.render import Renderer
from caiflow.engine.training.tokens import reply_ids
from support.chat_templates import TALK, Shape


def sampler(count: int = 7, batch: int = 3) -> Any:
    from caiflow.operators.training.rollouts import EpochSampler

    return EpochSampler(range(count), mini_repeat_count=2, batch_size=batch, repeat_count=2, shuffle=True, seed=5)


@pytest.mark.parametrize(("count", "batch"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_every_prompt_is_drawn(count: int, batch: int) -> None:
    drawn = list(sampler(count, batch))
    assert set(drawn) == set(range(count))
    assert len(drawn) == len(sampler(count, batch))
    assert len(drawn) % (batch * 4) == 0
    assert set(Counter(drawn).values()) <= {4 * times for times in (1, 2, 3, 4, 5)}


def test_an_epoch_s_order_follows_from_its_number() -> None:
    straight, resumed = sampler(), sampler()
    orders = []
    for epoch in range(3):
        straight.set_epoch(epoch)
        orders.append(list(straight))
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]
    assert orders[0] != orders[1]


def test_replies_to_one_prompt_lie_together_and_batches_repeat() -> None:
    drawn = list(sampler())
    assert drawn[0:6:2] == drawn[1:6:2]
    assert drawn[:6] == drawn[6:12]


def test_replies_to_a_held_out_prompt_lie_together_however_rows_that_train_are_grouped() -> None:
    from trl import GRPOTrainer

    from caiflow.operators.training.rollouts import Rollouts

    kind = type("Rl", (Rollouts, GRPOTrainer), {})
    made = kind.__new__(kind)
    made.args = SimpleNamespace(train_sampling_strategy="group_by_length", world_size=1, seed=1)
    made.num_generations_eval = 4
    drawn = list(made._get_eval_sampler(["a", "b", "c"]))
    assert sorted(drawn) == sorted([0, 1, 2] * 4)
    assert all(len(set(drawn[start : start + 4])) == 1 for start in (0, 4, 8))


@pytest.mark.parametrize(("ids", "expected"), [([1, 2, 9], 0.0), ([1, 2, 3, 4, 9], -0.2), ([1, 2, 3, 4, 5], -1.2), ([], -1.0)])
def test_length_is_paid_for(ids: list[int], expected: float) -> None:
    from caiflow.operators.training.rollouts import LengthControl

    assert LengthControl(free_tokens=3, per_token=0.1, unended=1.0).reward(ids, [9]) == pytest.approx(expected)


def test_watched_rates_are_told_and_don_t_count() -> None:
    from caiflow.operators.training.rollouts import LengthControl, length_control

    told: dict[str, float] = {}
    said = {1: "You are valued.", 2: "No."}
    watched = {"hollow": lambda text: "valued" in text}
    length = length_control(LengthControl(0, 0.0, 0.0), [9], watched, lambda _, ids: said[ids[0]])
    assert length(prompts=[[], []], completion_ids=[[1, 9], [2, 9]], log_metric=told.__setitem__) == [0.0, 0.0]
    assert told == {"hollow_rate": 0.5}


def test_a_reply_is_scored_by_the_words_that_serving_reads(shape: Shape, renderer: Renderer) -> None:
    from caiflow.operators.training.rollouts import reader

    _, ids = reply_ids(renderer, TALK[:3], TALK[3])
    read = reader(renderer, [ids[-1]])
    assert read(TALK[:3], ids) == read(TALK[:3], ids[:-1]) == TALK[3]["content"], shape


@pytest.mark.soak
@pytest.mark.vllm
def test_the_trainers_of_replies_come_without_vllm_which_trl_would_import() -> None:
    script = (
        "import sys\n"
        "from caiflow.engine.training.loop import quiet_libraries\n"
        "quiet_libraries()\n"
        "import caiflow.operators.training.ppo\n"
        "from trl import GRPOTrainer, RLOOTrainer\n"
        "assert not any(name.partition('.')[0] == 'vllm' for name in sys.modules), 'vllm was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
