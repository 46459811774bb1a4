"""What only the trainers' libraries knew is said by `validate`, at its place, with the nearest right name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from caiflow.engine.errors import SpecError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.model_files import layer_names
from caiflow.engine.spec.load import check_spec, load_spec
from caiflow.engine.training.checks import ATTENTION, OPTIMIZERS, QUANTISED_OPTIMIZERS, SCHEDULERS_NEED
from caiflow.engine.training.models import load_plain
from caiflow.engine.training.params import Scheduler
from support.chat_templates import SHAPES, SYSTEM, TALK, model_with

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
    ("lora: {targets: [input_layernorm]}", "`input_layernorm` takes no adapter: its weight is no matrix"),
    ('lora: {targets: ".*"}', "fits `model` too, which takes no adapter"),
    ('lora: {targets: ".*attn.*"}', "fits `model.layers.0.self_attn` too"),
    ('lora: {targets: ".*norm"}', "layernorm` too, which takes no adapter"),
    ('lora: {targets: "q_proj,v_proj"}', "write a list: [q_proj, v_proj]"),
    ('lora: {targets: ".*(q_porj"}', "isn't a pattern that can be searched"),
    ('lora: {targets: "(.*)_proj\\\\1"}', "isn't a pattern that can be searched: backreferences"),
    ('lora: {targets: "(([a-z0-9_]*\\\\.?)*)*!"}', "fits no whole name of a layer"),
    ("optim: adamw", "unknown optimizer `adamw`; did you mean `adamw_torch`?"),
    ("lr_scheduler_type: cosine_with_min_lr", "needs `min_lr` or `min_lr_rate`"),
    ("lr_scheduler_type: warmup_stable_decay", "needs `num_decay_steps`"),
    ("attn_implementation: flash_attention_2", "needs `flash_attn`, which isn't installed; use sdpa"),
    ("attn_implementation: theirs/kernel", "whose code would run on this machine; use one of eager, sdpa"),
    ("attn_implementation: spda", "did you mean `sdpa`?"),
    ("resources: {num_gpus: 2, workers: 2}", "uses one GPU, got 2; write `resources: {workers: 4}`"),
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
        "lora: {targets: [embed_tokens, lm_head]}",
        'lora: {targets: ".*(q_proj|lm_head)"}',
        "lora: {targets: [q_proj], dropout: 0.1}",
        "optim: sgd, attn_implementation: eager, max_length: 8192",
        "lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: 0.1}",
    ],
)
def test_what_is_right_passes(tmp_path: Path, field: str) -> None:
    assert problems(tmp_path, "sft", field) == []


@pytest.mark.parametrize("op", ["sft", "dpo", "rl"])
@pytest.mark.parametrize("targets", ["[lm_head]", "[q_proj, lm_head]", '"(.*q_proj|lm_head)"'])
def test_an_adapter_on_the_head_drops_nothing(tmp_path: Path, op: str, targets: str) -> None:
    (said,) = problems(tmp_path, op, f"lora: {{targets: {targets}, dropout: 0.1}}")
    assert "no adapter on `lm_head` is trained with `dropout`" in said


@pytest.mark.parametrize("targets", ["[lm_head]", "[q_proj, lm_head]", "lm_head"])
def test_a_reward_model_has_no_output_head(tmp_path: Path, targets: str) -> None:
    (said,) = problems(tmp_path, "reward", f"lora: {{targets: {targets}}}")
    assert "`lm_head`" in said


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_no_file_has_is_there_where_the_embedding_is_it(tmp_path: Path, tied: bool) -> None:
    model = edited(tmp_path, "config.json", tie_word_embeddings=tied)
    found = told(tmp_path, model, "tuned: {op: sft, input: asked, model: base, lora: {targets: [lm_head]}}")
    assert found == [] if tied else "no layer `lm_head`" in found[0]


def test_a_trained_model_has_the_layers_of_the_one_it_was(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, "sft", "lora: {targets: [c_attn]}", over="first")
    assert "no layer `c_attn`" in said


def told(folder: Path, model: str, *steps: str) -> list[str]:
    """Return what is wrong with the steps over rows that go on (`talks`), that don't (`asked`) and that have system turns."""
    talks = {"talks": TALK, "asked": TALK[2:], "ruled": [SYSTEM, *TALK[2:]]}
    for name, talk in talks.items():
        rows = [{"messages": talk}, {"messages": TALK[2:]}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.jsonl").write_text(json.dumps({"prompt": [SYSTEM, *TALK[:3]], "chosen": "So.", "rejected": "No."}) + "\n")
    loads = [f"{name}: {{op: load, source: {name}.jsonl}}" for name in (*talks, "pairs")]
    text = f"caiflow: 1\nname: late\nmodels: {{base: {model}}}\nsteps:\n" + "".join(f"  {s}\n" for s in (*loads, *steps))
    (folder / "spec.yaml").write_text(text)
    try:
        load_spec(folder / "spec.yaml", allowed=[folder.parent])
    except SpecError as error:
        return [problem.message for problem in error.problems]
    return []


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an entry for a model of each shape."""
    folder = tmp_path_factory.mktemp("shapes")
    return {name: f"{{source: {model_with(folder / name, shape).path}}}" for name, shape in SHAPES.items()}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_earlier_turns_that_can_t_be_learnt_are_found_before_answers_are_paid_for(
    name: str, shaped: dict[str, str], tmp_path: Path
) -> None:
    model, rewrites = shaped[name], SHAPES[name].earlier is None
    steps = ["tuned: {op: sft, input: talks, model: base}", "mixed: {op: mix, inputs: {talks: 1, asked: 1}}"]
    steps += ["again: {op: sft, input: mixed, model: tuned, loss_on: all}"]
    steps += ["answers: {op: generate, input: talks, model: base}", "third: {op: sft, input: answers, model: base}"]
    found = told(tmp_path, model, *steps)
    assert len(found) == (3 if rewrites else 0)
    assert all("rewrites what the assistant said before the last turn" in message for message in found)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_where_the_last_reply_alone_is_learnt_nothing_is_refused(name: str, shaped: dict[str, str], tmp_path: Path) -> None:
    steps = ["tuned: {op: sft, input: talks, model: base, loss_on: completion}", "one: {op: sft, input: asked, model: base}"]
    steps += ["answers: {op: generate, input: asked, model: base}", "two: {op: sft, input: answers, model: base}"]
    steps += ["last: {op: generate, input: talks, model: base, keep: last}", "three: {op: sft, input: last, model: base}"]
    assert told(tmp_path, shaped[name], *steps) == []


@pytest.mark.parametrize("name", ["gemma", "mistral-1", "chatml"])
def test_system_turns_that_the_template_refuses_are_counted(name: str, shaped: dict[str, str], tmp_path: Path) -> None:
    steps = ["answers: {op: generate, input: ruled, model: base}", "tuned: {op: sft, input: ruled, model: base}"]
    steps += ["better: {op: dpo, input: pairs, model: base}", "rm: {op: reward, input: pairs, model: base}"]
    steps += ["asked_so: {op: generate, input: asked, model: base, system: Be brief.}"]
    steps += ["free: {op: generate, input: ruled, model: base, mode: transcript}"]
    found = told(tmp_path, shaped[name], *steps)
    refused = "the chat template of `base` refuses system turns"
    ruled, pairs = (f"{refused}, which 1 of {n} rows of `{step}` have" for n, step in ((2, "ruled"), (1, "pairs")))
    assert sorted(found) == ([] if name == "chatml" else sorted([ruled, ruled, pairs, pairs, refused]))


def test_the_template_of_the_entry_counts(shaped: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(SHAPES["qwen-3"].template)
    model = shaped["chatml"].replace("}", ", chat_template: own.jinja}")
    assert len(told(tmp_path, model, "tuned: {op: sft, input: talks, model: base}")) == 1


def edited(folder: Path, file: str, **values: Any) -> str:
    """Return an entry for a copy of the small model, with other values in one of its files."""
    model_with(folder / "model", SHAPES["chatml"]._replace(template="{{ messages[-1].content }}"))
    path = folder / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return "{source: model}"


@pytest.mark.parametrize("op", ["sft, input: asked", "dpo, input: pairs", "reward, input: pairs"])
def test_a_tokenizer_that_doesn_t_fit_its_model_is_found(op: str, tmp_path: Path) -> None:
    (found,) = told(tmp_path, edited(tmp_path, "config.json", vocab_size=100), f"tuned: {{op: {op}, model: base}}")
    assert re.fullmatch(r"the tokenizer has \d+ tokens, and the model embeddings for 100", found)


def test_a_model_that_is_quantised_itself_is_found(tmp_path: Path) -> None:
    model = edited(tmp_path, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    (found,) = told(tmp_path, model, "tuned: {op: sft, input: asked, model: base, lora: {rank: 4}}")
    assert found.startswith("the model's own weights are rounded (bitsandbytes)")


def test_a_tokenizer_with_which_no_reply_ends_is_found(tmp_path: Path) -> None:
    model = edited(tmp_path, "tokenizer_config.json", eos_token=None)
    (found,) = told(tmp_path, model, "tuned: {op: sft, input: asked, model: base}")
    assert found.startswith("the tokenizer has no `eos_token`")


def test_layers_are_those_of_the_loaded_model(model: ModelSource) -> None:
    own = {name: list(module.parameters(recurse=False)) for name, module in load_plain(model).named_modules()}
    loaded = {name: any(weight.dim() > 1 for weight in weights) for name, weights in own.items() if weights}
    assert loaded.pop("lm_head"), "it is tied, and no file has it"
    assert layer_names(Path(model.path)) == loaded


def test_the_names_are_those_of_the_libraries() -> None:
    from transformers import SchedulerType
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.training_args import OptimizerNames

    known: Any = {name.value for name in OptimizerNames}
    assert {*OPTIMIZERS, *QUANTISED_OPTIMIZERS} <= known
    assert set(SCHEDULERS_NEED) <= set(get_args(Scheduler)) <= {kind.value for kind in SchedulerType}
    assert set(ATTENTION) - {"eager"} <= set(ALL_ATTENTION_FUNCTIONS.valid_keys())
