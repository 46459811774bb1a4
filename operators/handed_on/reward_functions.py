"""The files of reward functions, as TRL's trainers take them: `GRPOTrainer(reward_funcs=[score], ...)`."""

from __future__ import annotations

_OF_A_MODEL = '''\
"""The score of the reward model `{step}` as a reward function: `GRPOTrainer(reward_funcs=[score], ...)`."""

from pathlib import Path

from caiflow.engine.llm.base import ModelSource
from caiflow.operators.training.rollouts import score_function
from caiflow.operators.training.scoring import load_reward

score = score_function("{step}", load_reward(ModelSource(path=str(Path(__file__).parent / "{step}"), identity="")))
'''
_OF_A_STEP = '''\
"""The grade that the step `{step}` gives as a reward function: `GRPOTrainer(reward_funcs=[score], ...)`."""

from pathlib import Path

from caiflow.engine.run.rewarding import RowReward

score = RowReward(Path(__file__).parents[1] / "spec.yaml", "{step}")
'''


def of_a_model(step: str) -> str:
    """Return the file of a reward model's score; the model lies beside it, in a folder of the step's name."""
    return _OF_A_MODEL.format(step=step)


def of_a_step(step: str) -> str:
    """Return the file of a row step's number; the spec lies in the folder above."""
    return _OF_A_STEP.format(step=step)
