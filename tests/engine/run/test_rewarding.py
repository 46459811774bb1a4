"""Reward functions that an export writes, called as TRL's GRPOTrainer calls them, and by it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import CaiflowError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.lookback.export import write_for
from caiflow.engine.operator import StepContext
from caiflow.operators.reward import Reward, RewardParams
from caiflow.operators.training.scoring import load_reward
from support.small_models import job, lessons, preferences, small_model

SPEC = """\
caiflow: 1
name: small
models: {m: {source: model}}
steps:
  rows:   {op: load, source: rows.jsonl}
  answer: {op: generate, input: rows, model: m, sampling: {max_tokens: 4}}
  graded: {op: grade, input: answer, model: m, question: "Is this kind? {{ response }}", replies: {"A": 1, "B": 0}}
  taught: {op: reward, input: rows, model: m}
"""
PROMPTS = [row["messages"][:1] for row in lessons()[:6]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export's folder with the reward functions of a `grade` and of a really trained `reward` step."""
    place = tmp_path_factory.mktemp("place")
    model = small_model(place / "model")
    (place / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in preferences()))
    (place / "spec.yaml").write_text(SPEC)
    done = job(place / "trained", {"rows": preferences()}, m=model)
    settings = {"input": "rows", "model": "m", "learning_rate": 2e-3, "num_train_epochs": 2}
    Reward(RewardParams.model_validate(settings), StepContext()).train(done)
    made = {"taught": done.out_dir, "graded": place / "graded"}
    made["graded"].mkdir()
    (place / "steps").mkdir()
    for step, folder in made.items():
        (place / "steps" / step).symlink_to(folder)
    steps = {step: {"op": op, "status": "done"} for step, op in (("graded", "grade"), ("taught", "reward"))}
    (place / "run.json").write_text(json.dumps({"name": "small", "status": "done", "steps": steps}))
    target = place / "export"
    target.mkdir()
    for name in ("spec.yaml", "rows.jsonl"):
        shutil.copy(place / name, target / name)
    shutil.copytree(place / "model", target / "model")
    assert {"reward/graded.py", "reward/taught.py", "reward/taught/config.json"} <= set(write_for("reward", place, target))
    return target


def score_of(export: Path, step: str) -> Any:
    spec = importlib.util.spec_from_file_location(step, export / "reward" / f"{step}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.score


def test_a_reward_model_scores_as_it_does_in_a_run(export: Path) -> None:
    score = score_of(export, "taught")
    replies = [f"No, I will not {n}." for n in range(len(PROMPTS))]
    own = load_reward(ModelSource(path=str(export / "reward" / "taught"), identity="")).score(PROMPTS, replies)
    told = score(
        prompts=PROMPTS, completions=[[{"role": "assistant", "content": reply}] for reply in replies], trainer_state=None
    )
    assert told == pytest.approx(own)
    plain = score(prompts=[turns[0]["content"] for turns in PROMPTS], completions=replies)
    assert plain == pytest.approx(own), "plain texts are turns of the user"
    assert score.__name__ == "taught"


def test_a_grade_is_the_one_that_the_step_gives(export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path))
    score = score_of(export, "graded")
    completions = [[{"role": "assistant", "content": f"reply {n}"}] for n in range(len(PROMPTS))]
    grades = score(prompts=PROMPTS, completions=completions)
    assert all(0 <= grade <= 1 for grade in grades)
    assert len(set(grades)) > 1
    assert score(prompts=PROMPTS, completions=completions) == pytest.approx(grades), "the second call asks the same engine"
    assert score(prompts=PROMPTS[::-1], completions=completions[::-1]) == pytest.approx(grades[::-1])
    score.close()


def test_a_run_without_either_says_what_makes_one(export: Path, tmp_path: Path) -> None:
    place = export.parent
    with pytest.raises(CaiflowError, match=r"no step made anything for inspect.*`evaluate`"):
        write_for("inspect", place, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("step", ["taught", "graded"])
def test_grpo_takes_two_steps_with_it(export: Path, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    score = score_of(export, step)
    config = GRPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, num_generations=2, per_device_train_batch_size=2, use_cpu=True,
        max_completion_length=8, report_to="none", logging_steps=1, save_strategy="no",
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": turns} for turns in PROMPTS])
    trainer = GRPOTrainer(model=str(export / "model"), reward_funcs=[score], args=config, train_dataset=data)
    trainer.train()
    told = [line[f"rewards/{step}/mean"] for line in trainer.state.log_history if f"rewards/{step}/mean" in line]
    assert len(told) == 2
    assert trainer.state.global_step == 2
