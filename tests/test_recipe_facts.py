"""The numbers that the recipes' sources give, held against the recipes' full profiles.

The facts are of the paper (2212.08073), of AutoAlign's description, of NeMo-Aligner's tutorial, and of a small reproduction's
report; where a source is silent there is no line here, and the recipe's header says so.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.spec.grammar import Spec
from caiflow.engine.spec.load import load_spec
from support.source_tree import ROOT

FACTS: dict[str, dict[str, Any]] = {
    "paper": {
        "models.pretrained.source": "Qwen/Qwen2.5-7B",  # fine-tuned, and the judge: never the instruction-tuned one
        "steps.response.sampling.temperature": 1,
        "steps.revision.rounds": 4,
        "steps.revision.rows": "each",
        "steps.revision.few_shot": 5,
        "steps.helpful_samples.samples": 2,
        "steps.sl_cai.model": "pretrained",
        "steps.sl_cai.num_train_epochs": 1,
        "steps.sl_cai.lr_scheduler_type": "constant",
        "steps.sl_cai batch": 1024,
        "steps.preference.model": "pretrained",
        "steps.preference.labels": "soft",
        "steps.preference.examples": "drawn",
        "steps.pair.model": "sl_cai",
        "steps.pair.samples": 2,
        "steps.pair.sampling.temperature": 1,
        "steps.helpful_samples.sampling.temperature": 1,
        "steps.preference_model.model": "pretrained",
        "steps.rl_cai.model": "sl_cai",
        "steps.preference_model.num_train_epochs": 1,
        "steps.rl_cai.algorithm": "ppo",
        "steps.rl_cai.beta": 0.001,
        "steps.rl_cai.epsilon": 0.2,
        "steps.rl_cai.gamma": 1,
        "steps.scores.comparisons.harmlessness.labels": "hard",
        "steps.scores.comparisons.harmlessness.anchor": "sl_cai",
    },
    "autoalign_style": {
        "models.base.source": "mistralai/Mistral-7B-Instruct-v0.1",
        "steps.red_team.folder": "red-team-attempts",
        "steps.response.mode": "raw",
        "steps.response.sampling.temperature": 0.7,
        "steps.critique.sampling.temperature": 0,
        "steps.revision.sampling.temperature": 0,
        "steps.sl_cai.learning_rate": 2e-5,
        "steps.pair.model": "sl_cai",
        "steps.preference.model": "sl_cai",
        "steps.preference.swap": True,
        "steps.preference.ties": "drop",
        "steps.preference.labels": "hard",
        "steps.rl_cai.learning_rate": 2e-7,
        "steps.rl_cai.num_train_epochs": 1,
    },
    "nemo_style": {
        "models.base.source": "mistralai/Mistral-7B-Instruct-v0.1",
        "models.pretrained.source": "mistralai/Mistral-7B-v0.1",
        "models.judge.source": "mistralai/mixtral-8x7b-instruct-v0.1",
        "steps.red_team.turns": "first",
        "steps.response.sampling.temperature": 0,
        "steps.response.sampling.repetition_penalty": 1.2,
        "steps.response.sampling.max_tokens": 1024,
        "steps.sl_cai.model": "pretrained",
        "steps.sl_cai.learning_rate": 1e-6,
        "steps.sl_cai.max_length": 4096,
        "steps.sl_cai batch": 128,
        "steps.candidates.sampling.top_k": 50,
        "steps.candidates.sampling.top_p": 0.95,
        "steps.preference.pairs": "best_worst",
        "steps.preference.principles": "all",
        "steps.reward_model.model": "sl_cai",
        "steps.reward_model.max_length": 4096,
        "steps.reward_model batch": 512,
        "steps.reward_model.eval_input": "held_out_pairs",
        "steps.rl_cai.model": "sl_cai",
        "steps.rl_cai.beta": 0.02,
        "steps.rl_cai.learning_rate": 9e-8,
        "steps.rl_cai.lr_scheduler_kwargs": {"min_lr": 9e-9},
        "steps.rl_cai.max_completion_length": 1024,
        "steps.rl_cai batch": 64,
        "steps.rl_cai rollout": 512,
    },
    "pseudocode": {
        "steps.critique.model": "helpful",
        "steps.sl_model.model": "pretrained",
        "steps.pair.samples": 2,
        "steps.choice.model": "pretrained",
        "steps.choice.labels": "hard",
        "steps.choice.swap": False,
        "steps.preference_model.op": "reward",
        "steps.rl_model.model": "sl_model",
        "steps.sl_model.input": "clean",  # revisions alone
        "steps.rl_model.op": "rl",
    },
    "small_lora": {
        "models.base.source": "mistralai/Mistral-7B-Instruct-v0.3",
        "steps.revisions.source": "HuggingFaceH4/cai-conversation-harmless",
        "steps.revisions.sample": 2000,  # of one revision each
        "steps.helpful.sample": 800,
        "steps.sl_cai.num_train_epochs": 3,
        "steps.rl_cai.op": "dpo",
    },
}  # fmt: skip


@cache
def full(recipe: str) -> Spec:
    return load_spec(Path(ROOT) / "specs" / f"{recipe}.yaml", profile="full")


def value(spec: Spec, place: str) -> Any:
    """Return what a spec says at a dotted place; `batch` behind it is a training step's rows, `rollout` its replies at once."""
    part, _, derived = place.partition(" ")
    kind, name, *path = part.split(".")
    step = None if kind == "models" else spec.steps[name]
    if derived:
        assert step is not None
        each = step.params.per_device_train_batch_size * step.params.resources.workers
        return each * (step.params.gradient_accumulation_steps if derived == "batch" else step.params.steps_per_generation)
    if path == ["op"]:
        return None if step is None else step.op
    found: Any = spec.models[name] if step is None else step.params
    for field in path:
        found = found[field] if isinstance(found, dict) else getattr(found, field)
    return found


@pytest.mark.parametrize(("recipe", "place"), [(recipe, place) for recipe, facts in FACTS.items() for place in facts])
def test_a_full_profile_has_its_sources_numbers(recipe: str, place: str) -> None:
    assert value(full(recipe), place) == FACTS[recipe][place]


def test_autoalign_mixes_and_draws_as_described() -> None:
    spec = full("autoalign_style")
    assert value(spec, "steps.sft_data.inputs") == {"clean": 1, "helpful": 2.5}
    assert [sample.temperature for sample in value(spec, "steps.pair.samples")] == [0, 1]
    lengths = {
        rule.length.column: (rule.length.min, rule.length.max)
        for rule in value(spec, "steps.clean.drop")
        if getattr(rule, "length", None)
    }
    assert lengths == {"response": (10, 3000), "revision": (10, 2000)}
    assert value(spec, "steps.critique.few_shot") > 0
    assert value(spec, "steps.preference.few_shot") > 0


def test_nemo_draws_four_candidates_and_blends_three_folders() -> None:
    spec = full("nemo_style")
    assert [sample.temperature for sample in value(spec, "steps.candidates.samples")] == [0.01, 0.51, 1.01, 1.51]
    blended = [name for name in value(spec, "steps.rm_data.inputs") if name != "preference"]
    assert [value(spec, f"steps.{name}.folder") for name in blended] == [
        "helpful-base", "helpful-online", "helpful-rejection-sampled",
    ]  # fmt: skip
    assert list(value(spec, "steps.rl_prompts.inputs")) == ["red_team", *blended]


def test_the_paper_has_sixteen_principles_and_clamps_what_was_thought() -> None:
    spec = load_spec(Path(ROOT) / "specs" / "paper.yaml", profile="thinking")
    constitution = spec.operators["preference"].constitution
    assert len(constitution.principles) == 16
    assert tuple(value(spec, "steps.preference.chain_of_thought").clamp) == (0.4, 0.6)
