"""What only the trainers' libraries knew is said by `validate`, at its place, with the nearest right name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.model_files import layer_names
from caiflow.engine.spec.load import check_spec
from caiflow.engine.training.checks import ATTENTION, OPTIMIZERS, QUANTISED_OPTIMIZERS, SCHEDULERS_NEED
from caiflow.engine.training.models import load_plain
from caiflow.engine.training.params import Scheduler

FIELDS = {
    "sft": "input: rows",
    "dpo": "input: rows",
    "reward": "input: rows",
    "rl": "input: rows, rewards: {rm: 1}",
}
ROW = '{"prompt": "How?", "response": "So.", "chosen": "So.", "rejected": "No."}\n'


def problems(folder: Path, op: str, field: str, *, over: str = "base") -> list[str]:
    (folder / "rows.jsonl").write_text(ROW)
    steps = ["rows: {op: load, source: rows.jsonl}", "rm: {op: reward, input: rows, model: base}"]
    steps += ["first: {op: sft, input: rows, model: base}", f"tuned: {{op: {op}, {FIELDS[op]}, model: {over}, {field}}}"]
    text = "caiflow: 1\nname: late\nmodels: {base: {source: tiny}}\nsteps:\n" + "".join(f"  {step}\n" for step in steps)
    spec = folder / "spec.yaml"
    spec.write_text(text)
    found = check_spec(spec)
    assert {problem.line for problem in found} <= {8}
    return [str(problem) for problem in found]


WRONG = [
    ("lora: {targets: [q_proj, v_porj]}", "no layer `v_porj`; did you mean `v_proj`?"),
    ("lora: {targets: [c_attn]}", "no layer `c_attn`"),
    ("lora: {targets: [lm_head]}", "no adapter on `lm_head`"),
    ('lora: {targets: "q_proj,v_proj"}', "write a list: [q_proj, v_proj]"),
    ('lora: {targets: ".*(q_porj"}', "is no pattern"),
    ("optim: adamw", "unknown optimizer `adamw`; did you mean `adamw_torch`?"),
    ("lr_scheduler_type: cosine_with_min_lr", "needs `min_lr` or `min_lr_rate`"),
    ("lr_scheduler_type: warmup_stable_decay", "needs `num_decay_steps`"),
    ("attn_implementation: flash_attention_2", "needs `flash_attn`, which isn't installed; use sdpa"),
    ("attn_implementation: theirs/kernel", "whose code would run on this machine; use one of eager, sdpa"),
    ("attn_implementation: spda", "did you mean `sdpa`?"),
    ("max_length: 100000", "beyond the model's 8192 positions, got 100000"),
]


@pytest.mark.parametrize("op", FIELDS)
@pytest.mark.parametrize(("field", "message"), WRONG)
def test_it_is_said_before_anything_is_paid_for(tmp_path: Path, op: str, field: str, message: str) -> None:
    (said,) = problems(tmp_path, op, field)
    assert message in said


@pytest.mark.parametrize(
    "field",
    [
        "lora: {targets: [q_proj, layers.0.mlp.up_proj]}",
        'lora: {targets: ".*[qv]_proj"}',
        "lora: {targets: all-linear}",
        "lora: {targets: [embed_tokens]}",
        "optim: sgd, attn_implementation: eager, max_length: 8192",
        "lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: 0.1}",
    ],
)
def test_what_is_right_passes(tmp_path: Path, field: str) -> None:
    assert problems(tmp_path, "sft", field) == []


def test_a_trained_model_has_the_layers_of_the_one_it_was(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, "sft", "lora: {targets: [c_attn]}", over="first")
    assert "no layer `c_attn`" in said


def test_layers_are_those_of_the_loaded_model(model: ModelSource) -> None:
    loaded = {name for name, module in load_plain(model).named_modules() if list(module.parameters(recurse=False))}
    assert layer_names(Path(model.path)) == loaded - {"lm_head"}, "it is tied, and no file has it"


def test_the_names_are_those_of_the_libraries() -> None:
    from transformers import SchedulerType
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.training_args import OptimizerNames

    known: Any = {name.value for name in OptimizerNames}
    assert {*OPTIMIZERS, *QUANTISED_OPTIMIZERS} <= known
    assert set(SCHEDULERS_NEED) <= set(get_args(Scheduler)) <= {kind.value for kind in SchedulerType}
    assert set(ATTENTION) - {"eager"} <= set(ALL_ATTENTION_FUNCTIONS.valid_keys())
