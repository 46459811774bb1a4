"""The forms of a trained model: what was learnt is kept by itself, and another `merge` makes another form of it, untrained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import StepContext
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.run.runner import run
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store, content_manifest, read_artifact
from caiflow.engine.store.checkpoints import LEARNT
from caiflow.engine.store.cleaning import find_garbage
from support.events import read_events
from support.small_models import job, lessons, preferences
from support.tiers import few_at_once
from support.trainings import TRAINERS, reward_model, train

LORA = {"rank": 4}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, model: ModelSource) -> ModelSource:
    return reward_model(tmp_path_factory.mktemp("judge"), model)


def again(folder: Path, trainer: str, learnt: Path, models: dict[str, ModelSource], **more: Any) -> Any:
    """Save what was learnt before by one of the trainers; return its job."""
    kind, params_type, fields = TRAINERS[trainer]
    done = job(folder, {"rows": lessons() if trainer == "sft" else preferences((1.0, 0.8))}, **models)
    settings = {"input": "rows", "model": "base", "learning_rate": 5e-3, **fields, "lora": LORA, **more}
    kind(params_type.model_validate(settings), StepContext()).save_again(done, learnt)
    return done


@pytest.mark.parametrize("trainer", few_at_once(TRAINERS, "sft", "reward"))
def test_another_form_is_what_a_training_would_have_saved(
    tmp_path: Path, model: ModelSource, judge: ModelSource, trainer: str
) -> None:
    forms: dict[str, Any] = {"folded": {}} if trainer == "reward" else {"folded": {}, "apart": {"merge": False}}
    trained = {form: train(tmp_path / form, trainer, model, judge, lora=LORA, **merge) for form, merge in forms.items()}
    learnt = tmp_path / "folded" / "work" / LEARNT
    for form, merge in forms.items():
        saved = again(tmp_path / f"{form} again", trainer, learnt, {"base": model, "judge": judge}, **merge)
        assert content_manifest(saved.out_dir)["content"] == content_manifest(trained[form].out_dir)["content"]
        told, before = ({k: v for k, v in one.metrics.items() if "second" not in k} for one in (saved, trained[form]))
        assert {k: v for k, v in told.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in before.items() if isinstance(v, float)}, abs=1e-6
        )
        assert told.keys() == before.keys()


def test_a_form_that_is_no_longer_the_trained_model_is_refused(tmp_path: Path, model: ModelSource) -> None:
    train(tmp_path, "sft", model, lora=LORA, learning_rate=5e-2)
    learnt = tmp_path / "work" / LEARNT
    config = json.loads((learnt / "adapter_config.json").read_text())
    (learnt / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 400}))
    with pytest.raises(StepError, match="isn't the trained one"):
        again(tmp_path / "again", "sft", learnt, {"base": model})


def test_rl_keeps_no_adapter_apart_over_another_one(tmp_path: Path, model: ModelSource, judge: ModelSource) -> None:
    train(tmp_path / "first", "sft", model, lora=LORA, merge=False)
    kept = ModelSource(path=model.path, adapter=str(tmp_path / "first" / "out"), identity="")
    with pytest.raises(StepError, match="merge: false on a model that is a kept adapter"):
        train(tmp_path / "second", "grpo", kept, judge, lora=LORA, merge=False)


SPEC = """\
caiflow: 1
models: {base: {source: tiny}}
steps:
  rows: {op: load, source: "tiny:helpful_test.jsonl", limit: 8}
  tuned: {op: sft, input: rows, model: base, max_steps: 2, logging_steps: 1, lora: {rank: 2}, merge: true}
"""


@pytest.mark.soak
def test_a_run_with_another_merge_trains_nothing_again(tmp_path: Path, ray_address: str) -> None:
    store = Store(tmp_path / "home")

    def planned(merge: str, steps: int = 2) -> str:
        text = SPEC.replace("merge: true", f"merge: {merge}").replace("max_steps: 2", f"max_steps: {steps}")
        (tmp_path / "spec.yaml").write_text(text)
        step = make_plan(load_spec(tmp_path / "spec.yaml"), store).steps[1]
        return f"{step.state}: {step.reason}"

    def steps_taken(name: str) -> int:
        assert run(load_spec(tmp_path / "spec.yaml"), store, tmp_path / name, address=ray_address).status == "done"
        events = [event for event in read_events(tmp_path / name) if event.get("step") == "tuned"]
        return max((event.get("done") or 0 for event in events), default=0)

    planned("true")
    assert steps_taken("folded") == 2
    assert planned("false") == "partial: merge True -> False; trained before, only saved in another form"
    (learnt,) = (one for one in store.home.glob("artifacts/*/*") if read_artifact(one).meta.get("learnt"))
    learnt.rename(tmp_path / "learnt")  # as a store of an earlier version has none
    assert planned("false").endswith(
        "merge True -> False; what it learnt isn't kept apart from its form, so it trains once more"
    )
    (tmp_path / "learnt").rename(learnt)
    assert steps_taken("apart") == 0
    adapter = tmp_path / "apart" / "steps" / "tuned"
    assert (adapter / "adapter_config.json").exists()
    assert not (adapter / "model.safetensors").exists()
    assert planned("true") == "cached: done by an earlier run than the last, which had another"
    assert planned("false", steps=3) == "run: max_steps 2 -> 3", "what decides the weights is no form"
    shutil.rmtree(tmp_path / "folded")
    old = find_garbage(store, grace_s=-1)
    assert sorted(one.kind for one in old) == ["artifact", "run"], "what was learnt is the other run's too"
